/* What the network sees of each block: `numbers` in features.py. */

enum { LEVELS = 4, AROUND = 5, OWN = 18, SIGNS = COLUMNS - 8, STANDING = 7 };
enum { NUMBERS = OWN + SIGNS + LEVELS * AROUND + 3 * 4 + STANDING };
enum { LENGTH, LINKED, WORD_COUNT, COMMAS, STOPS, LINES, DEEP, SHALLOWEST }; /* the first columns of `measure` */

/* Characters of the blocks before one, and those in links. */
typedef struct {
    double text, links;
} Before;

static void own_numbers(const int32_t *row, Py_ssize_t i, Py_ssize_t count, int32_t copies, const Before *before,
                        float *to) {
    float order = (float)i, length = (float)row[LENGTH], words = (float)row[WORD_COUNT], total = (float)before[count].text;
    int32_t up = i ? row[DEEP - COLUMNS] - row[SHALLOWEST] : 0;
    to[0] = log1pf(length);
    to[1] = (float)row[LINKED] / length;
    to[2] = log1pf(words);
    to[3] = log1pf((float)row[COMMAS]);
    to[4] = log1pf((float)row[STOPS]);
    to[5] = (float)(row[COMMAS] + row[STOPS]) / words;
    to[6] = length / words / 8;
    to[7] = log1pf((float)row[LINES]);
    to[8] = logf((float)copies);
    to[9] = log1pf((float)row[DEEP]);
    to[10] = log1pf((float)(row[DEEP] - row[SHALLOWEST]));
    to[11] = log1pf(up > 0 ? (float)up : 0);
    to[12] = (float)before[i + 1].text / total;
    to[13] = order / (float)count;
    to[14] = log1pf(order);
    to[15] = log1pf((float)count - order);
    to[16] = logf(total);
    to[17] = (float)before[count].links / total;
    for (int sign = 0; sign < SIGNS; sign++) to[OWN + sign] = (float)row[8 + sign];
}

/* Of a container: log of the text, share of links, log of the blocks, log of their mean length, share of the page. */
static void around_numbers(const Container *container, const Before *before, double total, float *to) {
    int32_t count = container->end - container->start;
    double text = before[container->end].text - before[container->start].text;
    double links = before[container->end].links - before[container->start].links;
    to[0] = (float)log1p(text);
    to[1] = (float)(links / (text > 1 ? text : 1));
    to[2] = (float)log1p(count);
    to[3] = (float)log1p(text / (count > 1 ? count : 1));
    to[4] = (float)(text / total);
}

/* `kin`: a row of `alike`. */
static void likeness_numbers(const int32_t *kin, double total, float *to) {
    for (int group = 0; group < 3; group++, to += 4) {
        double count = kin[9 + 3 * group], text = kin[10 + 3 * group], links = kin[11 + 3 * group];
        to[0] = (float)(text / total);
        to[1] = (float)log1p(count);
        to[2] = (float)log1p(text / count);
        to[3] = (float)(links / text);
    }
    for (int i = 0; i < STANDING; i++) to[i] = i == 1 || i == 6 ? log1pf((float)kin[2 + i]) : (float)kin[2 + i];
}

static void all_numbers(const int32_t *rows, const int32_t *kin, Py_ssize_t count, const Container *containers,
                        Py_ssize_t enclosing, const int32_t *levels, Before *before, float *around, float *to) {
    before[0] = (Before){0, 0};
    for (Py_ssize_t i = 0; i < count; i++)
        before[i + 1] = (Before){before[i].text + rows[i * COLUMNS + LENGTH], before[i].links + rows[i * COLUMNS + LINKED]};
    double total = before[count].text;
    for (Py_ssize_t i = 0; i < enclosing; i++) around_numbers(&containers[i], before, total, around + i * AROUND);
    for (Py_ssize_t i = 0; i < count; i++, rows += COLUMNS, kin += ALIKE, to += NUMBERS) {
        own_numbers(rows, i, count, kin[0], before, to);
        float *at = to + OWN + SIGNS;
        for (int level = 0; level < LEVELS; level++, at += AROUND)
            memcpy(at, around + (Py_ssize_t)levels[kin[1] * LEVELS + level] * AROUND, AROUND * sizeof *at);
        likeness_numbers(kin, total, at);
        for (int j = 0; j < NUMBERS; j++) to[j] = to[j] < -4 ? -4 : to[j] > 16 ? 16 : to[j];
    }
}

static int within(Py_ssize_t number, Py_ssize_t least, Py_ssize_t most) { return number >= least && number <= most; }

static PyObject *numbers(PyObject *self, PyObject *args) {
    (void)self;
    const int32_t *rows, *kin, *levels;
    const Container *containers;
    Py_ssize_t sizes[4];
    if (!PyArg_ParseTuple(args, "y#y#y#y#", &rows, &sizes[0], &kin, &sizes[1], &containers, &sizes[2], &levels, &sizes[3]))
        return NULL;
    Py_ssize_t count = sizes[0] / (COLUMNS * 4), enclosing = sizes[2] / (Py_ssize_t)sizeof(Container);
    int right = count > 0 && sizes[1] == count * ALIKE * 4 && sizes[3] == enclosing * LEVELS * 4;
    for (Py_ssize_t i = 0; right && i < count; i++) right = within(kin[i * ALIKE + 1], 0, enclosing - 1);
    for (Py_ssize_t i = 0; right && i < enclosing; i++)
        right = within(containers[i].start, 0, count) && within(containers[i].end, 0, count);
    for (Py_ssize_t i = 0; right && i < enclosing * LEVELS; i++) right = within(levels[i], 0, enclosing - 1);
    if (!right) return PyErr_SetString(PyExc_TypeError, "what is known of blocks and of their containers"), NULL;
    PyObject *made = PyBytes_FromStringAndSize(NULL, count * NUMBERS * (Py_ssize_t)sizeof(float));
    Before *before = PyMem_Malloc((size_t)(count + 1) * sizeof *before + (size_t)enclosing * AROUND * sizeof(float));
    if (made && before) {
        all_numbers(rows, kin, count, containers, enclosing, levels, before, (float *)(before + count + 1),
                    (float *)PyBytes_AS_STRING(made));
    } else {
        Py_CLEAR(made);
        PyErr_NoMemory();
    }
    PyMem_Free(before);
    return made;
}
