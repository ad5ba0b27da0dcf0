/* Reading lines, compiled: their records, as msgspec's decoder of a Struct gives them, and the keys of an index of them.

   Optional, as `_speed.c` is. Only a line without white space, of members in any order whose texts have no escapes, is
   read here; whatever is unusual, valid or not, is left to the decoder that was handed in, so that both give the same
   and errors are always its own. Payloads are checked and passed over. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#ifndef SOURCE
#define SOURCE "" /* the SHA-256 of this file, by the build */
#endif

enum { MAX_MEMBERS = 32, MAX_CUTS = 4, HASHES = 64, MAX_DEPTH = 64, MAX_DIGITS = 19 };

typedef struct {
    const char *at, *end;
    int high; /* whether a byte beyond ASCII was seen */
} Cursor;

/* JSON (RFC 8259). Each gives 0 where it is unusual. */

/* Go to the first byte that ends a text or makes it unusual. */
static void pass_plain(Cursor *text)
{
    const char *at = text->at, *const end = text->end;
#if defined(__SSE2__)
    const __m128i quote = _mm_set1_epi8('"'), slash = _mm_set1_epi8('\\'), last = _mm_set1_epi8(0x1f);
    for (; end - at >= 16; at += 16) {
        const __m128i bytes = _mm_loadu_si128((const __m128i *)at);
        const __m128i control = _mm_cmpeq_epi8(_mm_max_epu8(bytes, last), last);
        const __m128i stop = _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(bytes, quote), _mm_cmpeq_epi8(bytes, slash)), control);
        const unsigned stops = (unsigned)_mm_movemask_epi8(stop), high = (unsigned)_mm_movemask_epi8(bytes);
        if (stops) {
            const int count = __builtin_ctz(stops);
            text->high |= (high & ((1u << count) - 1)) != 0;
            text->at = at + count;
            return;
        }
        text->high |= high != 0;
    }
#endif
    for (; at < end && *at != '"' && *at != '\\' && (unsigned char)*at >= 0x20; at++)
        text->high |= (unsigned char)*at >= 0x80;
    text->at = at;
}

/* Pass over a text without escapes, from its first quotation mark on; gives what is between the two. */
static int read_text(Cursor *text, const char **start, size_t *size)
{
    if (text->at >= text->end || *text->at != '"')
        return 0;
    *start = ++text->at;
    pass_plain(text);
    if (text->at >= text->end || *text->at != '"')
        return 0;
    *size = (size_t)(text->at++ - *start);
    return 1;
}

static int is_hex(char c)
{
    return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f');
}

static int pass_text(Cursor *text)
{
    for (text->at++;;) {
        pass_plain(text);
        if (text->at >= text->end)
            return 0;
        if (*text->at == '"') {
            text->at++;
            return 1;
        }
        if (*text->at != '\\' || text->end - text->at < 6)
            return 0;
        const char *const escape = text->at + 1;
        if (*escape != 'u') {
            if (!*escape || !strchr("\"\\/bfnrt", *escape))
                return 0;
            text->at += 2;
            continue;
        }
        for (int i = 1; i <= 4; i++)
            if (!is_hex(escape[i]))
                return 0;
        const int surrogate = (escape[1] | 0x20) == 'd' && !(escape[2] >= '0' && escape[2] <= '7');
        if (surrogate)
            return 0;
        text->at += 6;
    }
}

static int is_digit(const Cursor *text)
{
    return text->at < text->end && *text->at >= '0' && *text->at <= '9';
}

static int pass_digits(Cursor *text)
{
    if (!is_digit(text))
        return 0;
    while (is_digit(text))
        text->at++;
    return 1;
}

static int pass_number(Cursor *text)
{
    text->at += *text->at == '-';
    if (text->at < text->end && *text->at == '0')
        text->at++;
    else if (!pass_digits(text))
        return 0;
    if (text->at < text->end && *text->at == '.') {
        text->at++;
        if (!pass_digits(text))
            return 0;
    }
    if (text->at < text->end && (*text->at | 0x20) == 'e') {
        text->at++;
        if (text->at < text->end && (*text->at == '+' || *text->at == '-'))
            text->at++;
        if (!pass_digits(text))
            return 0;
    }
    return 1;
}

static int pass_word(Cursor *text, const char *word, size_t size)
{
    if ((size_t)(text->end - text->at) < size || memcmp(text->at, word, size))
        return 0;
    text->at += size;
    return 1;
}

static int take(Cursor *text, char c)
{
    if (text->at >= text->end || *text->at != c)
        return 0;
    text->at++;
    return 1;
}

static int pass_value(Cursor *text, int depth)
{
    if (text->at >= text->end || !depth)
        return 0;
    switch (*text->at) {
    case '"':
        return pass_text(text);
    case 't':
        return pass_word(text, "true", 4);
    case 'f':
        return pass_word(text, "false", 5);
    case 'n':
        return pass_word(text, "null", 4);
    case '{':
        text->at++;
        if (take(text, '}'))
            return 1;
        do {
            if (text->at >= text->end || *text->at != '"' || !pass_text(text) || !take(text, ':') ||
                !pass_value(text, depth - 1))
                return 0;
        } while (take(text, ','));
        return take(text, '}');
    case '[':
        text->at++;
        if (take(text, ']'))
            return 1;
        do {
            if (!pass_value(text, depth - 1))
                return 0;
        } while (take(text, ','));
        return take(text, ']');
    default:
        return pass_number(text);
    }
}

static int is_utf8(const char *text, Py_ssize_t size)
{
    PyObject *const whole = PyUnicode_DecodeUTF8(text, size, NULL);
    if (!whole)
        PyErr_Clear();
    Py_XDECREF(whole);
    return whole != NULL;
}

/* Members */

typedef struct Decoder Decoder;

/* What is OTHER is read by the fallback. */
typedef enum { TEXT, INTEGER, RAW, OTHER, OBJECT } Kind;

typedef struct {
    const char *name;
    size_t size;
    int next; /* of those with the same hash: its number, from 1 on; 0: there is none */
    Kind kind;
    int nullable;
    Py_ssize_t offset;   /* of its slot */
    PyObject *initial;   /* where it is left out; NULL: it may not be */
    PyObject *last;      /* of texts: the one before, as most repeat */
    Decoder *decoder;    /* of objects */
} Member;

/* A slot that takes a part of a text of ASCII. */
typedef struct {
    Py_ssize_t offset, start, stop;
    int member;
    PyObject *last;
} Cut;

struct Decoder {
    PyObject_HEAD
    vectorcallfunc call;
    PyTypeObject *type;
    PyObject *keep;      /* what names, defaults and types belong to */
    PyObject *types;     /* what may follow the first `"type":"` of a line; none: anything */
    PyObject *fallback;
    Py_ssize_t line;     /* the slot that takes the line; 0: none */
    int count, cutting;
    Cut cuts[MAX_CUTS];
    uint8_t first[HASHES];
    Member members[MAX_MEMBERS];
};

static PyObject **slot(PyObject *object, Py_ssize_t offset)
{
    return (PyObject **)((char *)object + offset);
}

/* Give a text of ASCII: the one before, where it is the same, as most repeat. */
static PyObject *ascii_of(PyObject **last, const char *start, size_t size)
{
    if (*last && (size_t)PyUnicode_GET_LENGTH(*last) == size && !memcmp(PyUnicode_1BYTE_DATA(*last), start, size)) {
        Py_INCREF(*last);
        return *last;
    }
    PyObject *const text = PyUnicode_New((Py_ssize_t)size, 127);
    if (text && size) {
        memcpy(PyUnicode_1BYTE_DATA(text), start, size);
        Py_INCREF(text);
        Py_XSETREF(*last, text);
    }
    return text;
}

/* What has to follow is no digit: where one does, or a fraction, the number is unusual. */
static int pass_integer(Cursor *text, long long *value)
{
    const int negative = take(text, '-');
    const char *const first = text->at;
    uint64_t number = 0;
    for (; is_digit(text) && text->at - first < MAX_DIGITS; text->at++)
        number = number * 10 + (uint64_t)(*text->at - '0');
    if (text->at == first || (*first == '0' && (negative || text->at - first > 1)) || number > INT64_MAX)
        return 0;
    if (value)
        *value = negative ? -(long long)number : (long long)number;
    return 1;
}

static PyObject *read_object(Decoder *decoder, Cursor *text, int depth);

/* Read a member's value. NULL where it is unusual, or with an exception set. */
static PyObject *read_member(Member *member, Cursor *text, int depth)
{
    const char *start = text->at;
    size_t size;
    if (member->nullable && text->at < text->end && *text->at == 'n') {
        if (!pass_word(text, "null", 4))
            return NULL;
        Py_RETURN_NONE;
    }
    switch (member->kind) {
    case TEXT: {
        const int before = text->high;
        text->high = 0;
        const int found = read_text(text, &start, &size), high = text->high;
        text->high |= before;
        if (!found)
            return NULL;
        return high ? PyUnicode_DecodeUTF8(start, (Py_ssize_t)size, NULL) : ascii_of(&member->last, start, size);
    }
    case INTEGER: {
        long long value;
        return pass_integer(text, &value) ? PyLong_FromLongLong(value) : NULL;
    }
    case RAW:
        return pass_value(text, depth) ? PyBytes_FromStringAndSize(start, text->at - start) : NULL;
    case OBJECT:
        return read_object(member->decoder, text, depth);
    default:
        return NULL;
    }
}

static unsigned hash_of(const char *name, size_t size)
{
    return size ? ((unsigned char)name[0] + 5 * (unsigned)size) % HASHES : 0;
}

/* Give the member of a name, NULL where it is none of ours. */
static Member *find(Decoder *decoder, const char *name, size_t size)
{
    for (int at = decoder->first[hash_of(name, size)]; at; at = decoder->members[at - 1].next) {
        Member *const member = &decoder->members[at - 1];
        if (member->size == size && !memcmp(member->name, name, size))
            return member;
    }
    return NULL;
}

static PyObject *read_object(Decoder *decoder, Cursor *text, int depth)
{
    if (!depth || !take(text, '{'))
        return NULL;
    PyObject *const object = decoder->type->tp_alloc(decoder->type, 0);
    if (!object)
        return NULL;
    if (!take(text, '}')) {
        do {
            const char *name;
            size_t size;
            if (!read_text(text, &name, &size) || !take(text, ':'))
                goto unusual;
            Member *const member = find(decoder, name, size);
            if (!member) {
                if (!pass_value(text, depth - 1))
                    goto unusual;
                continue;
            }
            PyObject **const place = slot(object, member->offset);
            if (*place)
                goto unusual;
            *place = read_member(member, text, depth - 1);
            if (!*place)
                goto unusual;
        } while (take(text, ','));
        if (!take(text, '}'))
            goto unusual;
    }
    for (int i = 0; i < decoder->count; i++) {
        PyObject **const place = slot(object, decoder->members[i].offset);
        if (*place)
            continue;
        if (!decoder->members[i].initial)
            goto unusual;
        Py_INCREF(decoder->members[i].initial);
        *place = decoder->members[i].initial;
    }
    return object;
unusual:
    Py_DECREF(object);
    return NULL;
}

/* Give the object of a line; NULL where it is unusual, or with an exception set. */
static PyObject *read_line(Decoder *decoder, const char *line, Py_ssize_t size)
{
    Cursor text = {line, line + size, 0};
    PyObject *const object = read_object(decoder, &text, MAX_DEPTH);
    if (!object)
        return NULL;
    if (text.end - text.at == 1 && *text.at == '\n')
        text.at++;
    /* What is passed over is to be UTF-8 too. */
    if (text.at == text.end && (!text.high || is_utf8(line, size)))
        return object;
    Py_DECREF(object);
    return NULL;
}

/* Tell whether a line has one of the types that are wanted: what stands before it (format, 3) holds no quotation mark
   that is not escaped. */
static int is_wanted(const Decoder *decoder, const char *line, size_t size)
{
    static const char name[] = "\"type\":\"";
    const char *const found = memmem(line, size, name, sizeof name - 1);
    if (!found)
        return 0;
    const char *const type = found + sizeof name - 1;
    const Py_ssize_t left = line + size - type;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(decoder->types); i++) {
        PyObject *const each = PyTuple_GET_ITEM(decoder->types, i);
        if (PyBytes_GET_SIZE(each) <= left && !memcmp(type, PyBytes_AS_STRING(each), (size_t)PyBytes_GET_SIZE(each)))
            return 1;
    }
    return 0;
}

/* Set the slots that take parts of others, as slices do. Tells whether that was possible. */
static int cut_texts(Decoder *decoder, PyObject *object)
{
    for (int i = 0; i < decoder->cutting; i++) {
        Cut *const cut = &decoder->cuts[i];
        PyObject *const text = *slot(object, decoder->members[cut->member].offset);
        if (!PyUnicode_Check(text) || !PyUnicode_IS_COMPACT_ASCII(text) || PyUnicode_GET_LENGTH(text) < cut->stop)
            return 0;
        const char *const start = (const char *)PyUnicode_1BYTE_DATA(text) + cut->start;
        PyObject *const part = ascii_of(&cut->last, start, (size_t)(cut->stop - cut->start));
        if (!part)
            return 0;
        Py_XSETREF(*slot(object, cut->offset), part);
    }
    return 1;
}

/* decoder(line: bytes) -> the object; None where its type is not wanted */
static PyObject *call(PyObject *self, PyObject *const *args, size_t given, PyObject *names)
{
    Decoder *const decoder = (Decoder *)self;
    if (PyVectorcall_NARGS(given) != 1 || names)
        return PyErr_Format(PyExc_TypeError, "a decoder takes one line");
    PyObject *const line = args[0];
    PyObject *object = NULL;
    if (PyBytes_CheckExact(line)) {
        if (PyTuple_GET_SIZE(decoder->types) &&
            !is_wanted(decoder, PyBytes_AS_STRING(line), (size_t)PyBytes_GET_SIZE(line)))
            Py_RETURN_NONE;
        object = read_line(decoder, PyBytes_AS_STRING(line), PyBytes_GET_SIZE(line));
        if (object && !cut_texts(decoder, object))
            Py_CLEAR(object);
    }
    if (object) {
        if (decoder->line) {
            Py_INCREF(line);
            Py_XSETREF(*slot(object, decoder->line), line);
        }
        return object;
    }
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
            return NULL;
        PyErr_Clear();
    }
    return PyObject_CallOneArg(decoder->fallback, line);
}

/* The keys of lines (runs.py) */

enum { ID, TIME, TYPE, TURN, PARENT, NAMED, PARENT_SIZE = 52, TIME_SIZE = 30, CELL_BITS = 10, HASH_BITS = 32 };

static const char *const NAMES[NAMED] = {"id", "time", "type", "ipchash", "traceparent"};

/* What a key's hash begins with, by its kind. */
enum { OF_ID = 1, OF_TRACE, OF_SPAN, OF_TURN };

static uint32_t crc_table[8][256];

static void make_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
        crc_table[0][i] = crc;
    }
    for (int row = 1; row < 8; row++)
        for (int i = 0; i < 256; i++)
            crc_table[row][i] = crc_table[row - 1][i] >> 8 ^ crc_table[0][crc_table[row - 1][i] & 255];
}

/* CRC-32 as zlib's `crc32` gives it, eight bytes at a time (M. Kounavis, F. Berry, 2005). */
static uint32_t crc32_of(const char *text, size_t size, uint32_t crc)
{
    const uint8_t *at = (const uint8_t *)text;
    crc = ~crc;
    for (; size >= 8; size -= 8, at += 8) {
        crc ^= (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
        crc = crc_table[7][crc & 255] ^ crc_table[6][crc >> 8 & 255] ^ crc_table[5][crc >> 16 & 255] ^
              crc_table[4][crc >> 24] ^ crc_table[3][at[4]] ^ crc_table[2][at[5]] ^ crc_table[1][at[6]] ^
              crc_table[0][at[7]];
    }
    while (size--)
        crc = crc >> 8 ^ crc_table[0][(crc ^ *at++) & 255];
    return ~crc;
}

typedef struct {
    const char *start; /* NULL: there is none */
    size_t size;
} Text;

/* Pass over a line whose members are such as the decoder would read; gives the texts of those in `NAMES`. */
static int read_texts(Decoder *decoder, Cursor *text, Text found[NAMED])
{
    uint32_t seen = 0;
    memset(found, 0, NAMED * sizeof *found);
    if (!take(text, '{') || take(text, '}'))
        return 0;
    do {
        const char *name;
        size_t size;
        if (!read_text(text, &name, &size) || !take(text, ':'))
            return 0;
        const Member *const member = find(decoder, name, size);
        if (!member) {
            if (!pass_value(text, MAX_DEPTH))
                return 0;
            continue;
        }
        const uint32_t bit = (uint32_t)1 << (member - decoder->members);
        if (seen & bit)
            return 0;
        seen |= bit;
        if (member->nullable && text->at < text->end && *text->at == 'n') {
            if (!pass_word(text, "null", 4))
                return 0;
        } else if (member->kind == TEXT) {
            Text value;
            if (!read_text(text, &value.start, &value.size))
                return 0;
            for (int i = 0; i < NAMED; i++)
                if (size == strlen(NAMES[i]) && !memcmp(name, NAMES[i], size))
                    found[i] = value;
        } else if (member->kind == INTEGER ? !pass_integer(text, NULL) : member->kind != RAW || !pass_value(text, MAX_DEPTH))
            return 0;
    } while (take(text, ','));
    for (int i = 0; i < decoder->count; i++)
        if (!decoder->members[i].initial && !(seen & (uint32_t)1 << i))
            return 0;
    return take(text, '}') && take(text, '\n') && text->at == text->end;
}

static int is_ascii(const Text *text)
{
    Cursor all = {text->start, text->start + text->size, 0};
    pass_plain(&all);
    return !all.high;
}

static int number_at(const char *text, int digits)
{
    int value = 0;
    while (digits--)
        value = value * 10 + (*text++ - '0');
    return value;
}

/* Tell whether a text is an instant as it is written (format, 3), so that texts sort as they do; some that are too
   seldom to matter are left to Python. */
static int is_time(const Text *time)
{
    static const char shape[] = "0000-00-00T00:00:00.000000000Z";
    if (time->size != TIME_SIZE)
        return 0;
    for (int i = 0; i < TIME_SIZE; i++)
        if (shape[i] == '0' ? time->start[i] < '0' || time->start[i] > '9' : time->start[i] != shape[i])
            return 0;
    const int month = number_at(time->start + 5, 2), day = number_at(time->start + 8, 2);
    const int most = month == 2 ? 28 : month == 4 || month == 6 || month == 9 || month == 11 ? 30 : 31;
    return number_at(time->start, 4) > 0 && month >= 1 && month <= 12 && day >= 1 && day <= most &&
           number_at(time->start + 11, 2) < 24 && number_at(time->start + 14, 2) < 60 &&
           number_at(time->start + 17, 2) < 60;
}

/* instant(text: str) -> nanoseconds since the epoch; None where Python has to look at it */
static PyObject *instant(PyObject *Py_UNUSED(self), PyObject *given)
{
    if (!PyUnicode_Check(given) || !PyUnicode_IS_COMPACT_ASCII(given))
        Py_RETURN_NONE;
    const Text text = {(const char *)PyUnicode_1BYTE_DATA(given), (size_t)PyUnicode_GET_LENGTH(given)};
    if (!is_time(&text))
        Py_RETURN_NONE;
    const char *const at = text.start;
    /* Years begin in March here: the day that some have more is their last (H. Hinnant, days_from_civil). */
    const int month = number_at(at + 5, 2), year = number_at(at, 4) - (month <= 2);
    if (year < 1678 || year > 2261)
        Py_RETURN_NONE; /* beyond 64 bits */
    const int of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + number_at(at + 8, 2) - 1;
    const int64_t days = (int64_t)year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719468;
    const int64_t seconds =
        days * 86400 + number_at(at + 11, 2) * 3600 + number_at(at + 14, 2) * 60 + number_at(at + 17, 2);
    return PyLong_FromLongLong(seconds * 1000000000 + number_at(at + 20, 9));
}

typedef struct {
    uint64_t *keys;
    size_t count, room;
    uint64_t cell;
} Keys;

static int add_key(Keys *keys, const char *text, size_t size, uint32_t kind)
{
    if (keys->count == keys->room) {
        const size_t room = keys->room ? 2 * keys->room : 1024;
        uint64_t *const more = PyMem_Realloc(keys->keys, room * sizeof *more);
        if (!more)
            return 0;
        keys->keys = more;
        keys->room = room;
    }
    keys->keys[keys->count++] = (uint64_t)crc32_of(text, size, kind) << CELL_BITS | keys->cell;
    return 1;
}

static int same_text(const Text *one, const Text *other)
{
    return one->start && other->start && one->size == other->size && !memcmp(one->start, other->start, one->size);
}

/* Add the keys of a record, but those that it has in common with the one before. */
static int add_keys(Keys *keys, const Text found[NAMED], const Text before[NAMED])
{
    const Text *const turn = &found[TURN], *const parent = &found[PARENT];
    if (!add_key(keys, found[ID].start, found[ID].size, OF_ID))
        return 0;
    if (turn->start && !same_text(turn, &before[TURN]) && !add_key(keys, turn->start, turn->size, OF_TURN))
        return 0;
    if (!parent->start || same_text(parent, &before[PARENT]))
        return 1;
    return add_key(keys, parent->start + 3, 32, OF_TRACE) && add_key(keys, parent->start + 36, 16, OF_SPAN);
}

/* decoder.cell(block: bytes, cell: int) -> (records, least time, largest time, keys, places of telemetry) or None

   Of whole lines: their keys as 64-bit integers, `hash << 10 | cell`, in no order and some twice; and where those of
   OpenTelemetry begin and end that name their trace in the payload. None where Python has to look at the lines. */
static PyObject *cell(PyObject *self, PyObject *args)
{
    Decoder *const decoder = (Decoder *)self;
    const char *block;
    Py_ssize_t size;
    unsigned number;
    if (!PyArg_ParseTuple(args, "y#I", &block, &size, &number))
        return NULL;
    if (number >> CELL_BITS)
        return PyErr_Format(PyExc_ValueError, "a run has no such cell");
    Keys keys = {.cell = number};
    Text texts[2][NAMED] = {0}, *found = texts[0], *before = texts[1];
    const char *least = NULL, *largest = NULL, *at = block;
    Py_ssize_t records = 0;
    PyObject *result = NULL, *others = PyList_New(0);
    if (!others)
        return NULL;
    int high = 0;
    for (; at < block + size; records++) {
        const char *const end = memchr(at, '\n', (size_t)(block + size - at));
        Cursor text = {at, end ? end + 1 : at, 0};
        if (!read_texts(decoder, &text, found) || !found[ID].start || !found[TYPE].start || !is_time(&found[TIME]))
            goto unusual;
        high |= text.high;
        if (found[PARENT].start && (found[PARENT].size < PARENT_SIZE || (text.high && !is_ascii(&found[PARENT]))))
            goto unusual;
        if (!least || memcmp(found[TIME].start, least, TIME_SIZE) < 0)
            least = found[TIME].start;
        if (!largest || memcmp(found[TIME].start, largest, TIME_SIZE) > 0)
            largest = found[TIME].start;
        if (!add_keys(&keys, found, before)) {
            PyErr_NoMemory();
            goto done;
        }
        if (!found[PARENT].start && found[TYPE].size >= 5 && !memcmp(found[TYPE].start, "otel.", 5)) {
            PyObject *const place = Py_BuildValue("nn", at - block, text.end - block);
            const int failed = !place || PyList_Append(others, place) < 0;
            Py_XDECREF(place);
            if (failed)
                goto done;
        }
        Text *const other = before;
        before = found;
        found = other;
        at = text.end;
    }
    if (!records || (high && !is_utf8(block, size)))
        goto unusual;
    result = Py_BuildValue("ns#s#y#O", records, least, (Py_ssize_t)TIME_SIZE, largest, (Py_ssize_t)TIME_SIZE,
                           (const char *)keys.keys, (Py_ssize_t)(keys.count * sizeof *keys.keys), others);
    goto done;
unusual:
    Py_INCREF(Py_None);
    result = Py_None;
done:
    PyMem_Free(keys.keys);
    Py_DECREF(others);
    return result;
}

/* Sort by the hash and the cell, eleven bits at a time; gives which of the two places holds the result. */
static uint64_t *sort(uint64_t *keys, uint64_t *spare, size_t count)
{
    for (int shift = 0; shift < HASH_BITS + CELL_BITS; shift += 11) {
        size_t starts[2049] = {0};
        for (size_t i = 0; i < count; i++)
            starts[(keys[i] >> shift & 2047) + 1]++;
        for (int digit = 0; digit < 2048; digit++)
            starts[digit + 1] += starts[digit];
        for (size_t i = 0; i < count; i++)
            spare[starts[keys[i] >> shift & 2047]++] = keys[i];
        uint64_t *const sorted = spare;
        spare = keys;
        keys = sorted;
    }
    return keys;
}

/* order(keys: bytes) -> the same 64-bit integers, sorted, each once */
static PyObject *order(PyObject *Py_UNUSED(self), PyObject *given)
{
    if (!PyBytes_CheckExact(given) || PyBytes_GET_SIZE(given) % 8)
        return PyErr_Format(PyExc_TypeError, "order() takes bytes of 64-bit integers");
    const size_t count = (size_t)PyBytes_GET_SIZE(given) / 8;
    uint64_t *const room = PyMem_Malloc((2 * count + 1) * sizeof *room);
    if (!room)
        return PyErr_NoMemory();
    memcpy(room, PyBytes_AS_STRING(given), 8 * count);
    uint64_t *const keys = sort(room, room + count, count);
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (!kept || keys[kept - 1] != keys[i])
            keys[kept++] = keys[i];
    PyObject *const ordered = PyBytes_FromStringAndSize((const char *)keys, (Py_ssize_t)(8 * kept));
    PyMem_Free(room);
    return ordered;
}

/* Decoders */

/* Give the place of a slot; 0 where the descriptor is not one of a type that the garbage collector passes over. */
static Py_ssize_t offset_of(PyTypeObject *type, PyObject *descriptor)
{
    if (!Py_IS_TYPE(descriptor, &PyMemberDescr_Type) || ((PyMemberDescrObject *)descriptor)->d_common.d_type != type)
        return 0;
    const PyMemberDef *const definition = ((PyMemberDescrObject *)descriptor)->d_member;
    return definition->type == T_OBJECT_EX || definition->type == T_OBJECT ? definition->offset : 0;
}

static PyTypeObject decoder_type;

/* Decoder(type, members: tuple of (name, kind or Decoder, nullable, descriptor, default or Ellipsis), line, fallback,
   types: tuple of bytes, cuts: tuple of (descriptor, member, start, stop)) */
static PyObject *new(PyTypeObject *own, PyObject *args, PyObject *named)
{
    PyTypeObject *type;
    PyObject *members, *line, *fallback, *types, *cuts;
    if (named || !PyArg_ParseTuple(args, "O!O!OOO!O!", &PyType_Type, &type, &PyTuple_Type, &members, &line, &fallback,
                                   &PyTuple_Type, &types, &PyTuple_Type, &cuts))
        return named ? PyErr_Format(PyExc_TypeError, "Decoder() takes no names") : NULL;
    if (PyTuple_GET_SIZE(members) > MAX_MEMBERS || PyTuple_GET_SIZE(cuts) > MAX_CUTS || PyType_IS_GC(type))
        return PyErr_Format(PyExc_ValueError, "too many members, or a type with garbage collection");
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(types); i++)
        if (!PyBytes_CheckExact(PyTuple_GET_ITEM(types, i)))
            return PyErr_Format(PyExc_TypeError, "types are bytes");
    Decoder *const decoder = (Decoder *)own->tp_alloc(own, 0);
    if (!decoder)
        return NULL;
    decoder->call = call;
    Py_INCREF(type);
    decoder->type = type;
    Py_INCREF(members);
    decoder->keep = members;
    Py_INCREF(types);
    decoder->types = types;
    Py_INCREF(fallback);
    decoder->fallback = fallback;
    if (line != Py_None && !(decoder->line = offset_of(type, line)))
        goto bad;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(members); i++) {
        Member *const member = &decoder->members[i];
        PyObject *kind, *descriptor, *initial;
        Py_ssize_t size;
        if (!PyTuple_Check(PyTuple_GET_ITEM(members, i)))
            goto bad;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(members, i), "y#OpOO", &member->name, &size, &kind, &member->nullable,
                              &descriptor, &initial))
            goto failed;
        member->size = (size_t)size;
        member->offset = offset_of(type, descriptor);
        member->initial = initial == Py_Ellipsis ? NULL : initial;
        if (!member->offset)
            goto bad;
        if (Py_IS_TYPE(kind, &decoder_type)) {
            member->kind = OBJECT;
            member->decoder = (Decoder *)kind;
        } else {
            const long number = PyLong_AsLong(kind);
            if (number < TEXT || number > OTHER)
                goto bad;
            member->kind = (Kind)number;
        }
        decoder->count++;
        uint8_t *const first = &decoder->first[hash_of(member->name, member->size)];
        member->next = *first;
        *first = (uint8_t)decoder->count;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(cuts); i++, decoder->cutting++) {
        Cut *const cut = &decoder->cuts[i];
        PyObject *descriptor;
        if (!PyTuple_Check(PyTuple_GET_ITEM(cuts, i)))
            goto bad;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(cuts, i), "Oinn", &descriptor, &cut->member, &cut->start, &cut->stop))
            goto failed;
        cut->offset = offset_of(type, descriptor);
        if (!cut->offset || cut->member < 0 || cut->member >= decoder->count || cut->start < 0 ||
            cut->stop < cut->start)
            goto bad;
    }
    return (PyObject *)decoder;
bad:
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "not a member that can be set");
failed:
    Py_DECREF(decoder);
    return NULL;
}

static void dealloc(PyObject *self)
{
    Decoder *const decoder = (Decoder *)self;
    for (int i = 0; i < decoder->count; i++)
        Py_XDECREF(decoder->members[i].last);
    for (int i = 0; i < decoder->cutting; i++)
        Py_XDECREF(decoder->cuts[i].last);
    Py_XDECREF(decoder->keep);
    Py_XDECREF(decoder->types);
    Py_XDECREF(decoder->fallback);
    Py_XDECREF(decoder->type);
    Py_TYPE(self)->tp_free(self);
}

static PyMethodDef methods[] = {{"cell", cell, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};

static PyTypeObject decoder_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "otledger._decode.Decoder",
    .tp_basicsize = sizeof(Decoder),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_new = new,
    .tp_dealloc = dealloc,
    .tp_call = PyVectorcall_Call,
    .tp_methods = methods,
    .tp_vectorcall_offset = offsetof(Decoder, call),
};

static PyMethodDef functions[] = {
    {"instant", instant, METH_O, NULL}, {"order", order, METH_O, NULL}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "otledger._decode", NULL, -1, functions, 0, 0, 0, 0};

PyMODINIT_FUNC PyInit__decode(void)
{
    /* The texts that a decoder keeps would outlive the interpreter that they come from. */
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "otledger._decode works in the main interpreter only");
        return NULL;
    }
    make_crc_table();
    PyObject *const own = PyType_Ready(&decoder_type) < 0 ? NULL : PyModule_Create(&module);
    if (!own || PyModule_AddObjectRef(own, "Decoder", (PyObject *)&decoder_type) < 0 ||
        PyModule_AddStringConstant(own, "source", SOURCE) < 0)
        return NULL;
    return own;
}
