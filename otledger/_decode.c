/* Lines to records, compiled: what msgspec's decoder of a Struct gives, for the lines that otledger writes.

   Optional, as `_speed.c` is. Only a line without white space, of members in any order whose texts have no escapes, is
   read here; whatever is unusual, valid or not, is left to the decoder that was handed in, so that both give the same
   and errors are always its own. Payloads are checked and passed over. */

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

enum { MAX_MEMBERS = 32, HASHES = 64, MAX_DEPTH = 64, MAX_DIGITS = 18 };

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

struct Decoder {
    PyObject_HEAD
    vectorcallfunc call;
    PyTypeObject *type;
    PyObject *keep;      /* what names and defaults belong to */
    PyObject *fallback;
    Py_ssize_t line;     /* the slot that takes the line; 0: none */
    int count;
    uint8_t first[HASHES];
    Member members[MAX_MEMBERS];
};

static PyObject **slot(PyObject *object, Py_ssize_t offset)
{
    return (PyObject **)((char *)object + offset);
}

static PyObject *text_of(Member *member, const char *start, size_t size, int ascii)
{
    if (!ascii)
        return PyUnicode_DecodeUTF8(start, (Py_ssize_t)size, NULL);
    PyObject *const last = member->last;
    if (last && (size_t)PyUnicode_GET_LENGTH(last) == size && !memcmp(PyUnicode_1BYTE_DATA(last), start, size)) {
        Py_INCREF(last);
        return last;
    }
    PyObject *const text = PyUnicode_New((Py_ssize_t)size, 127);
    if (text) {
        memcpy(PyUnicode_1BYTE_DATA(text), start, size);
        if (size) {
            Py_INCREF(text);
            Py_XSETREF(member->last, text);
        }
    }
    return text;
}

static PyObject *integer_of(Cursor *text)
{
    const char *const start = text->at;
    const int negative = take(text, '-');
    long long value = 0;
    const char *const first = text->at;
    for (; is_digit(text) && text->at - first < MAX_DIGITS; text->at++)
        value = value * 10 + (*text->at - '0');
    const char *const after = text->at;
    /* Too long, no number, a leading zero, or a number with a fraction: what has to follow is no digit. */
    if (after == first || (*first == '0' && (negative || after - first > 1))) {
        text->at = start;
        return NULL;
    }
    return PyLong_FromLongLong(negative ? -value : value);
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
        return found ? text_of(member, start, size, !high) : NULL;
    }
    case INTEGER:
        return integer_of(text);
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
    int good = text.at == text.end;
    if (good && text.high) {
        /* What is passed over is to be UTF-8 too. */
        PyObject *const whole = PyUnicode_DecodeUTF8(line, size, NULL);
        good = whole != NULL;
        Py_XDECREF(whole);
    }
    if (!good)
        Py_DECREF(object);
    return good ? object : NULL;
}

/* decoder(line: bytes) -> the object */
static PyObject *call(PyObject *self, PyObject *const *args, size_t given, PyObject *names)
{
    Decoder *const decoder = (Decoder *)self;
    if (PyVectorcall_NARGS(given) != 1 || names)
        return PyErr_Format(PyExc_TypeError, "a decoder takes one line");
    PyObject *const line = args[0];
    PyObject *const object =
        PyBytes_CheckExact(line) ? read_line(decoder, PyBytes_AS_STRING(line), PyBytes_GET_SIZE(line)) : NULL;
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

/* Give the place of a slot; 0 where the descriptor is not one of a type that the garbage collector passes over. */
static Py_ssize_t offset_of(PyTypeObject *type, PyObject *descriptor)
{
    if (!Py_IS_TYPE(descriptor, &PyMemberDescr_Type) || ((PyMemberDescrObject *)descriptor)->d_common.d_type != type)
        return 0;
    const PyMemberDef *const definition = ((PyMemberDescrObject *)descriptor)->d_member;
    return definition->type == T_OBJECT_EX || definition->type == T_OBJECT ? definition->offset : 0;
}

static PyTypeObject decoder_type;

/* Decoder(type, members: tuple of (name, kind or Decoder, nullable, descriptor, default or Ellipsis), line, fallback) */
static PyObject *new(PyTypeObject *own, PyObject *args, PyObject *named)
{
    PyTypeObject *type;
    PyObject *members, *line, *fallback;
    if (named || !PyArg_ParseTuple(args, "O!O!OO", &PyType_Type, &type, &PyTuple_Type, &members, &line, &fallback))
        return named ? PyErr_Format(PyExc_TypeError, "Decoder() takes no names") : NULL;
    if (PyTuple_GET_SIZE(members) > MAX_MEMBERS || PyType_IS_GC(type))
        return PyErr_Format(PyExc_ValueError, "too many members, or a type with garbage collection");
    Decoder *const decoder = (Decoder *)own->tp_alloc(own, 0);
    if (!decoder)
        return NULL;
    decoder->call = call;
    Py_INCREF(type);
    decoder->type = type;
    Py_INCREF(members);
    decoder->keep = members;
    Py_INCREF(fallback);
    decoder->fallback = fallback;
    if (line != Py_None && !(decoder->line = offset_of(type, line)))
        goto bad;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(members); i++) {
        Member *const member = &decoder->members[i];
        PyObject *kind, *descriptor, *initial;
        Py_ssize_t size;
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
    Py_XDECREF(decoder->keep);
    Py_XDECREF(decoder->fallback);
    Py_XDECREF(decoder->type);
    Py_TYPE(self)->tp_free(self);
}

static PyTypeObject decoder_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "otledger._decode.Decoder",
    .tp_basicsize = sizeof(Decoder),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_new = new,
    .tp_dealloc = dealloc,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Decoder, call),
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "otledger._decode", NULL, -1, NULL, 0, 0, 0, 0};

PyMODINIT_FUNC PyInit__decode(void)
{
    /* The texts that a decoder keeps would outlive the interpreter that they come from. */
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "otledger._decode works in the main interpreter only");
        return NULL;
    }
    PyObject *const own = PyType_Ready(&decoder_type) < 0 ? NULL : PyModule_Create(&module);
    if (!own || PyModule_AddObjectRef(own, "Decoder", (PyObject *)&decoder_type) < 0 ||
        PyModule_AddStringConstant(own, "source", SOURCE) < 0)
        return NULL;
    return own;
}
