# lib/aggregates.txt -> a C header: one table that the report and --help share.
BEGIN {
    print "/* Made from lib/aggregates.txt by tools/aggregates.awk. */"
    print "static const struct aggregate {"
    print "    const char *name, *meaning;"
    print "    double (*value)(const struct summary *);"
    print "} AGGREGATES[] = {"
}
/^#/ || NF == 0 { next }
{
    name = $1
    meaning = $0
    sub(/^[^ ]+ +/, "", meaning)
    printf "    {\"%s\", \"%s\", summary_%s},\n", name, meaning, name
}
END { print "};" }
