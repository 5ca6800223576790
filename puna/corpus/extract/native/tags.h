/* A page cut into its tags, and what a tag tells: markup.py, which has the patterns and says what they are for. */

enum { INLINE = 1, VOID = 2, SKIPPED = 4, GROUP = 8, ROW = 16, CELL = 32, LINK = 64, PRE = 128, FORMULA = 256 };
enum { IMAGE = 512, RULE = 1024, LINE = 2048 }; /* passes.py makes a table of names with these */
enum { SKIPPED_CLASS = 1, MATHJAX_CLASS = 2, PREFORMATTED_CLASS = 4 };
enum { BESIDE_TEX = 1, ALWAYS = 2 };
enum { FLAGS = 4096 }; /* the number of a tag is its flags + FLAGS * (its bit of the hints + 1) */
enum { WORDS = 4 };    /* of 64 bits, in a set of hints */

typedef struct {
    uint64_t words[WORDS];
} Hints;

typedef struct {
    Map tags, bits, classes, openings;
    int hidden; /* its bit, or -1 */
    Py_ssize_t width, openings_width; /* bytes */
    PyObject *block, *drawn_formula, *formula, *essence;
} Tables;

typedef struct {
    Slice name, attributes;
    const char *start, *end;
    int closing, flags, bit;
} Tag;

typedef struct {
    Hints hints;
    int skipped, preformatted;
} Traits;

static void set(Hints *hints, int bit) {
    if (bit >= 0 && bit < 64 * WORDS) hints->words[bit / 64] |= (uint64_t)1 << bit % 64;
}

static Hints both(const Hints *a, const Hints *b) {
    Hints sum;
    for (int i = 0; i < WORDS; i++) sum.words[i] = a->words[i] | b->words[i];
    return sum;
}

/* The tag that starts at `at`, a "<"; 0 where none does. */
static int read_tag(const Tables *tables, const char *at, const char *end, Tag *tag) {
    const char *name = at + 1;
    tag->closing = name < end && *name == '/';
    name += tag->closing;
    if (name >= end || *name < 'a' || *name > 'z') return 0;
    const char *after = name;
    while (after < end && *after != '/' && *after != '>' && !space(after, end)) {
        do after++;
        while (after < end && is_continuation(*after));
    }
    const char *close = after;
    for (; close < end && *close != '>'; close++)
        if (*close == '"' && !(close = memchr(close + 1, '"', (size_t)(end - close - 1)))) return 0;
    if (close >= end) return 0;
    tag->name = (Slice){name, after - name};
    tag->attributes = (Slice){after, close - after};
    tag->start = at;
    tag->end = close + 1;
    int number = map_get(&tables->tags, name, after - name);
    tag->flags = number < 0 ? 0 : number % FLAGS;
    tag->bit = number < 0 ? -1 : number / FLAGS - 1;
    return 1;
}

static int read_tags(const Tables *tables, Slice html, Buffer *tags) {
    const char *at = html.at, *end = at + html.size;
    while (at < end && (at = memchr(at, '<', (size_t)(end - at)))) {
        Tag tag;
        if (!read_tag(tables, at, end, &tag)) {
            at++;
            continue;
        }
        if (append(tags, (const char *)&tag, sizeof tag)) return -1;
        at = tag.end;
    }
    return 0;
}

static int is_lower(char c) { return c >= 'a' && c <= 'z'; }
static int is_upper(char c) { return c >= 'A' && c <= 'Z'; }

/* The words of the value of a class, id, role or itemprop: "mainMenu" says "main" and "menu". */
static void told_by_words(const Tables *tables, Slice value, Hints *hints) {
    const char *at = value.at, *end = at + value.size;
    while (at < end) {
        const char *start = at;
        if (is_upper(*at)) {
            while (at < end && is_upper(*at)) at++;
            if (at < end && is_lower(*at)) {
                if (at - start > 1) at--; /* the last one begins the next word */
                else while (at < end && is_lower(*at)) at++;
            }
        } else if (is_lower(*at)) {
            while (at < end && is_lower(*at)) at++;
        } else {
            at++;
            continue;
        }
        char word[64]; /* longer than any that is known */
        if (at - start > (Py_ssize_t)sizeof word) continue;
        for (Py_ssize_t i = 0; i < at - start; i++) word[i] = (char)(start[i] | 32);
        set(hints, map_get(&tables->bits, word, at - start));
    }
}

static void told_by_classes(const Tables *tables, Slice value, Traits *traits) {
    const char *at = value.at, *end = at + value.size;
    int found = 0;
    while (at < end) {
        int bytes = space(at, end);
        if (bytes) {
            at += bytes;
            continue;
        }
        const char *start = at;
        while (at < end && !space(at, end)) at++;
        int kind = map_get(&tables->classes, start, at - start);
        if (kind > 0) found |= kind;
    }
    int skipped = found & SKIPPED_CLASS ? ALWAYS : found & MATHJAX_CLASS ? BESIDE_TEX : 0;
    if (skipped > traits->skipped) traits->skipped = skipped;
    if (found & PREFORMATTED_CLASS) traits->preformatted = 1;
}

/* Whether a style has `property`, blanks, then `value`. The place after it goes to `after`. */
static int styled(Slice style, const char *property, const char *value, const char **after) {
    const char *end = style.at + style.size;
    size_t length = strlen(value);
    for (const char *at = style.at; (at = find((Slice){at, end - at}, property));) {
        at += strlen(property);
        const char *told = at;
        for (int bytes; told < end && (bytes = space(told, end));) told += bytes;
        if ((size_t)(end - told) >= length && !memcmp(told, value, length)) {
            *after = told + length;
            return 1;
        }
    }
    return 0;
}

static int keeps_blanks(Slice style, const char *value) {
    const char *end = style.at + style.size, *after;
    for (; styled(style, "white-space:", value, &after); style = (Slice){after, end - after}) {
        const char *next = after;
        for (int bytes; next < end && (bytes = space(next, end));) next += bytes;
        if (next == end || *next == ';') return 1;
    }
    return 0;
}

static void told_by_style(const Tables *tables, Slice style, Traits *traits) {
    const char *after;
    if (styled(style, "display:", "none", &after) || styled(style, "visibility:", "hidden", &after))
        set(&traits->hints, tables->hidden);
    if (keeps_blanks(style, "pre") || keeps_blanks(style, "break-spaces")) traits->preformatted = 1;
}

static void told_by(const Tables *tables, Slice name, Slice value, Traits *traits) {
    static const char *const describing[] = {"class", "id", "role", "itemprop"};
    for (int i = 0; i < 4; i++)
        if (equal(name, (Slice){describing[i], (Py_ssize_t)strlen(describing[i])})) {
            told_by_words(tables, value, &traits->hints);
            told_by_classes(tables, value, traits);
            return;
        }
    if (equal(name, (Slice){"style", 5})) told_by_style(tables, value, traits);
    else if (equal(name, (Slice){"hidden", 6}) || equal(name, (Slice){"aria-hidden", 11})) {
        if (!equal(value, (Slice){"false", 5})) set(&traits->hints, tables->hidden);
    }
}

/* Markup.traits. */
static Traits read_traits(const Tables *tables, const Tag *tag) {
    Traits traits = {.skipped = tag->flags & SKIPPED ? ALWAYS : 0, .preformatted = (tag->flags & PRE) != 0};
    set(&traits.hints, tag->bit);
    if (traits.skipped) return traits;
    const char *at = tag->attributes.at, *end = at + tag->attributes.size;
    while (at < end && (at = memchr(at, ' ', (size_t)(end - at)))) {
        const char *name = ++at;
        while (at < end && *at != ' ' && *at != '=' && *at != '"') at++;
        if (at == name) continue;
        Slice value = {at, 0};
        Slice key = {name, at - name};
        if (end - at >= 2 && at[0] == '=' && at[1] == '"') {
            const char *close = memchr(at + 2, '"', (size_t)(end - at - 2));
            if (close) {
                value = (Slice){at + 2, close - at - 2};
                at = close + 1;
            }
        }
        told_by(tables, key, value, &traits);
    }
    return traits;
}
