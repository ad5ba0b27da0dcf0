/* The hot path, compiled: the JSON of an event, stamping, and checking lines by their bytes (format, 2 and 3).

   Optional: record.py, batch.py and verifier.py do the same in Python where this was not built, and tests hold the
   two against each other. Nothing here runs foreign code but orjson's `dumps`, and `stamp` and `check` let other
   threads run while they hash. They need the SHA instructions of x86 processors: elsewhere hashlib is faster. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#define HAVE_SHA 1
#else
#define HAVE_SHA 0
#endif

#ifndef SOURCE
#define SOURCE "" /* the SHA-256 of this file, by the build */
#endif

static const char HEX[] = "0123456789abcdef";

static void to_hex(char *to, const uint8_t *from, int count)
{
    for (int i = 0; i < count; i++) {
        to[2 * i] = HEX[from[i] >> 4];
        to[2 * i + 1] = HEX[from[i] & 15];
    }
}

static size_t digits_of(long long number)
{
    size_t count = 1;
    while (number >= 10) {
        number /= 10;
        count++;
    }
    return count;
}

/* SHA-256 (FIPS 180-4) */

#if HAVE_SHA

static const uint32_t K[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

/* The state is held as the instructions want it: ABEF and CDGH, the first named highest. */
__attribute__((target("sha,sse4.1,ssse3"))) static void
sha256_blocks(__m128i state[2], const uint8_t *data, size_t blocks)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bULL, 0x0405060700010203ULL);
    __m128i abef = state[0], cdgh = state[1];
    for (; blocks; blocks--, data += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4];
        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(data + 16 * i)), swap);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            const __m128i now = w[i & 3];
            const __m128i sum = _mm_add_epi32(now, _mm_load_si128((const __m128i *)(K + 4 * i)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
            /* The words of four groups on, from these and the three groups between. */
            const __m128i last = w[(i + 3) & 3];
            const __m128i part = _mm_add_epi32(_mm_sha256msg1_epu32(now, w[(i + 1) & 3]),
                                               _mm_alignr_epi8(last, w[(i + 2) & 3], 4));
            w[i & 3] = _mm_sha256msg2_epu32(part, last);
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    state[0] = abef;
    state[1] = cdgh;
}

__attribute__((target("sha,sse4.1,ssse3"))) static void
sha256(uint8_t digest[32], const uint8_t *data, size_t size)
{
    __m128i state[2] = {_mm_set_epi32(0x6a09e667, (int)0xbb67ae85, 0x510e527f, (int)0x9b05688c),
                        _mm_set_epi32(0x3c6ef372, (int)0xa54ff53a, 0x1f83d9ab, 0x5be0cd19)};
    const size_t whole = size / 64, rest = size % 64;
    uint8_t last[128] = {0};
    const size_t length = rest < 56 ? 64 : 128;
    memcpy(last, data + 64 * whole, rest);
    last[rest] = 0x80;
    for (int i = 0; i < 8; i++)
        last[length - 1 - i] = (uint8_t)((uint64_t)size * 8 >> (8 * i));
    sha256_blocks(state, data, whole);
    sha256_blocks(state, last, length / 64);
    uint32_t abef[4], cdgh[4];
    _mm_storeu_si128((__m128i *)abef, state[0]);
    _mm_storeu_si128((__m128i *)cdgh, state[1]);
    const uint32_t words[8] = {abef[3], abef[2], cdgh[3], cdgh[2], abef[1], abef[0], cdgh[1], cdgh[0]};
    for (int i = 0; i < 32; i++)
        digest[i] = (uint8_t)(words[i / 4] >> (24 - 8 * (i % 4)));
}

/* Write the digest of `size` bytes as 64 hex digits. */
static void sha256_hex(char *hex, const uint8_t *data, size_t size)
{
    uint8_t digest[32];
    sha256(digest, data, size);
    to_hex(hex, digest, 32);
}

static int has_sha(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSSE3) || !(c & bit_SSE4_1))
        return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 29));
}

/* Lines */

#define PREV ",\"prev\":\""
#define CHECKSUM "\",\"checksum\":\"sha256:"
enum { HASH = 64, SEQ_ROOM = 27, END = sizeof CHECKSUM - 1 + HASH + 3, TAIL_ROOM = SEQ_ROOM + 8 + HASH + END };

/* Write `,"seq":N,"prev":"` and the hash; gives the bytes written. */
static size_t write_place(char *to, long long seq, const char *prev)
{
    char *at = to + sprintf(to, ",\"seq\":%lld" PREV, seq);
    memcpy(at, prev, HASH);
    return (size_t)(at - to) + HASH;
}

/* Write the rest of a line, whose body with its closing quote ends at `to`. */
static void write_end(char *to, const char *hash)
{
    memcpy(to, CHECKSUM, sizeof CHECKSUM - 1);
    memcpy(to + sizeof CHECKSUM - 1, hash, HASH);
    memcpy(to + sizeof CHECKSUM - 1 + HASH, "\"}\n", 3);
}

/* stamp(parts: list[bytes], seq: int, prev: bytes) -> list[bytes] */
static PyObject *stamp(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t given)
{
    if (given != 3 || !PyList_Check(args[0]) || !PyBytes_Check(args[2]) || PyBytes_GET_SIZE(args[2]) != HASH)
        return PyErr_Format(PyExc_TypeError, "stamp() takes a list of bytes, an int and 64 bytes");
    const long long seq = PyLong_AsLongLong(args[1]);
    if (seq < 0)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "seq is negative");
    const Py_ssize_t count = PyList_GET_SIZE(args[0]);
    /* What is reserved for a number below would not hold one that wrapped around. */
    if (seq > LLONG_MAX - count)
        return PyErr_Format(PyExc_OverflowError, "seq is too large");
    PyObject *lines = PyList_New(count);
    /* The list may change while other threads run: what it holds now is what counts. */
    PyObject **parts = lines ? PyMem_Malloc((size_t)(count + 1) * sizeof *parts) : NULL;
    if (!parts) {
        Py_XDECREF(lines);
        return PyErr_NoMemory();
    }
    Py_ssize_t taken = 0;
    for (; taken < count; taken++) {
        PyObject *part = PyList_GET_ITEM(args[0], taken);
        if (!PyBytes_Check(part)) {
            PyErr_Format(PyExc_TypeError, "a part is bytes");
            break;
        }
        const size_t more = 7 + digits_of(seq + taken) + sizeof PREV - 1 + HASH + END;
        PyObject *line = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(part) + (Py_ssize_t)more);
        if (!line)
            break;
        PyList_SET_ITEM(lines, taken, line);
        Py_INCREF(part);
        parts[taken] = part;
    }
    if (taken == count) {
        char prev[HASH];
        memcpy(prev, PyBytes_AS_STRING(args[2]), HASH);
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < count; i++) {
            char *const line = PyBytes_AS_STRING(PyList_GET_ITEM(lines, i));
            size_t size = (size_t)PyBytes_GET_SIZE(parts[i]);
            memcpy(line, PyBytes_AS_STRING(parts[i]), size);
            size += write_place(line + size, seq + i, prev);
            line[size] = '"';
            sha256_hex(prev, (const uint8_t *)line, size + 1);
            write_end(line + size, prev);
        }
        Py_END_ALLOW_THREADS
    }
    for (Py_ssize_t i = 0; i < taken; i++)
        Py_DECREF(parts[i]);
    PyMem_Free(parts);
    if (taken < count)
        Py_CLEAR(lines);
    return lines;
}

/* Tell whether the type of a line begins with `otledger.`: the first `","type":"` is the member. */
static int is_control(const char *line, size_t size)
{
    static const char member[] = "\",\"type\":\"", own[] = "otledger.";
    if (size < 26)
        return 0;
    const char *at = memmem(line + 26, size - 26, member, sizeof member - 1);
    return at && (size_t)(line + size - at) > sizeof member + sizeof own &&
           !memcmp(at + sizeof member - 1, own, sizeof own - 1);
}

/* check(block: bytes, start: int, limit: int, seq: int, prev: bytes) -> (stop, count, prev, controls)

   Goes over the whole lines from `start` on that begin before `limit`, as long as each is the one that is due.
   `controls` are the places of otledger's own records. */
static PyObject *check(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t given)
{
    if (given != 5 || !PyBytes_Check(args[0]) || !PyBytes_Check(args[4]) || PyBytes_GET_SIZE(args[4]) != HASH)
        return PyErr_Format(PyExc_TypeError, "check() takes bytes, three ints and 64 bytes");
    Py_ssize_t at = PyLong_AsSsize_t(args[1]);
    Py_ssize_t limit = PyLong_AsSsize_t(args[2]);
    long long seq = PyLong_AsLongLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    const Py_ssize_t size = PyBytes_GET_SIZE(args[0]);
    if (limit > size)
        limit = size;
    if (at < 0 || at > size || seq < 0)
        return PyErr_Format(PyExc_ValueError, "start or seq is out of range");
    PyObject *controls = PyList_New(0);
    if (!controls)
        return NULL;
    const char *const block = PyBytes_AS_STRING(args[0]);
    char prev[HASH], hash[HASH], tail[TAIL_ROOM];
    memcpy(prev, PyBytes_AS_STRING(args[4]), HASH);
    long long count = 0;
    int more = 1;
    while (more) {
        Py_ssize_t control = -1;
        Py_BEGIN_ALLOW_THREADS
        more = 0;
        while (at < limit && seq < LLONG_MAX) {
            const char *const line = block + at;
            const char *const end = memchr(line, '\n', (size_t)(size - at));
            const size_t length = end ? (size_t)(end - line) + 1 : 0;
            const size_t place = write_place(tail, seq, prev);
            if (length < place + END)
                break;
            /* Number and place in the chain are compared before anything is hashed. */
            const size_t body = length - END + 1;
            if (line[body - 1] != '"' || memcmp(line + body - 1 - place, tail, place))
                break;
            sha256_hex(hash, (const uint8_t *)line, body);
            write_end(tail, hash);
            if (memcmp(line + body - 1, tail, END))
                break;
            memcpy(prev, hash, HASH);
            seq++;
            count++;
            const Py_ssize_t here = at;
            at += (Py_ssize_t)length;
            if (is_control(line, length)) {
                control = here;
                more = 1;
                break;
            }
        }
        Py_END_ALLOW_THREADS
        if (control >= 0) {
            PyObject *place = PyLong_FromSsize_t(control);
            const int failed = !place || PyList_Append(controls, place) < 0;
            Py_XDECREF(place);
            if (failed) {
                Py_DECREF(controls);
                return NULL;
            }
        }
    }
    return Py_BuildValue("nLy#N", at, count, prev, (Py_ssize_t)HASH, controls);
}

/* The Merkle tree (otledger/merkle.py): a node is its level, a byte, and its hash */

enum { NODE = 33, MOST_NODES = 128 };

/* Write 32 bytes from 64 lower-case hex digits; 0 where they are none. */
static int from_hex(uint8_t *to, const char *from)
{
    for (int i = 0; i < 64; i++) {
        const char digit = from[i];
        const int value = digit >= '0' && digit <= '9' ? digit - '0' : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
        if (value < 0)
            return 0;
        to[i / 2] = (uint8_t)(i % 2 ? to[i / 2] | value : value << 4);
    }
    return 1;
}

/* grow(block: bytes, start: int, stop: int, seq: int, nodes: bytes) -> bytes

   Adds the leaves of the whole lines between two offsets, the first of which is number `seq`, to what `nodes` hold of
   the leaves before it: the roots of perfect subtrees, from left to right. */
static PyObject *grow(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t given)
{
    if (given != 5 || !PyBytes_Check(args[0]) || !PyBytes_Check(args[4]))
        return PyErr_Format(PyExc_TypeError, "grow() takes bytes, three ints and bytes");
    Py_ssize_t at = PyLong_AsSsize_t(args[1]);
    const Py_ssize_t stop = PyLong_AsSsize_t(args[2]);
    long long seq = PyLong_AsLongLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    const Py_ssize_t before = PyBytes_GET_SIZE(args[4]);
    if (at < 0 || at > stop || stop > PyBytes_GET_SIZE(args[0]) || seq < 0 || before % NODE ||
        before > MOST_NODES / 2 * NODE)
        return PyErr_Format(PyExc_ValueError, "start, stop, seq or nodes are out of range");
    uint8_t nodes[(MOST_NODES + 1) * NODE];
    memcpy(nodes, PyBytes_AS_STRING(args[4]), (size_t)before);
    uint8_t *top = nodes + before;
    const char *const block = PyBytes_AS_STRING(args[0]);
    int good = 1;
    Py_BEGIN_ALLOW_THREADS
    while (at < stop) {
        const char *const end = memchr(block + at, '\n', (size_t)(stop - at));
        uint8_t leaf[33] = {0}, pair[65] = {1};
        good = end && end - (block + at) >= END && seq < LLONG_MAX && from_hex(leaf + 1, end - 2 - HASH);
        if (!good)
            break;
        top[0] = 0;
        sha256(top + 1, leaf, sizeof leaf);
        /* A right child whose sibling is here: both become their parent. */
        for (uint64_t place = (uint64_t)seq; place & 1 && top > nodes && top[-NODE] == top[0]; place >>= 1) {
            memcpy(pair + 1, top - NODE + 1, 32);
            memcpy(pair + 33, top + 1, 32);
            top -= NODE;
            top[0]++;
            sha256(top + 1, pair, sizeof pair);
        }
        top += NODE;
        seq++;
        at = end + 1 - block;
        if (top > nodes + MOST_NODES * NODE) {
            good = 0;
            break;
        }
    }
    Py_END_ALLOW_THREADS
    if (!good)
        return PyErr_Format(PyExc_ValueError, "a line without a checksum, or too many nodes");
    return PyBytes_FromStringAndSize((char *)nodes, top - nodes);
}

#endif

/* Ids and times */

static uint8_t pool[4096];
static size_t pool_at = sizeof pool;

/* A forked child gives out no id of its parent's. */
static void forget_pool(void)
{
    pool_at = sizeof pool;
}

static const uint8_t *take_random(size_t count)
{
    if (pool_at + count > sizeof pool) {
        /* More than 256 bytes may come in pieces, and not at all where a signal comes first: getrandom(2). */
        for (size_t have = 0; have < sizeof pool;) {
            const ssize_t more = getrandom(pool + have, sizeof pool - have, 0);
            if (more > 0)
                have += (size_t)more;
            else if (more == 0 || errno != EINTR)
                return NULL;
        }
        pool_at = 0;
    }
    pool_at += count;
    return pool + pool_at - count;
}

/* Write the 32 digits of a UUIDv7 (RFC 9562) of a millisecond since the epoch. */
static int write_id(char *to, uint64_t millisecond)
{
    const uint8_t *random = take_random(10);
    if (!random)
        return -1;
    uint8_t bytes[16];
    for (int i = 0; i < 6; i++)
        bytes[i] = (uint8_t)(millisecond >> (40 - 8 * i));
    memcpy(bytes + 6, random, 10);
    bytes[6] = 0x70 | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    to_hex(to, bytes, 16);
    return 0;
}

static void write_digits(char *to, uint64_t number, int count)
{
    while (count--) {
        to[count] = (char)('0' + number % 10);
        number /= 10;
    }
}

/* Write an instant between the years 1970 and 9999 as `2026-11-21T03:00:00.000000000`. */
static void write_time(char *to, uint64_t ns)
{
    static uint64_t second = UINT64_MAX;
    static char text[19];
    if (ns / 1000000000 != second) {
        const time_t whole = (time_t)(ns / 1000000000);
        struct tm parts;
        gmtime_r(&whole, &parts);
        memcpy(text, "0000-00-00T00:00:00", sizeof text);
        write_digits(text, (uint64_t)parts.tm_year + 1900, 4);
        write_digits(text + 5, (uint64_t)parts.tm_mon + 1, 2);
        write_digits(text + 8, (uint64_t)parts.tm_mday, 2);
        write_digits(text + 11, (uint64_t)parts.tm_hour, 2);
        write_digits(text + 14, (uint64_t)parts.tm_min, 2);
        write_digits(text + 17, (uint64_t)parts.tm_sec, 2);
        second = ns / 1000000000;
    }
    memcpy(to, text, sizeof text);
    to[19] = '.';
    write_digits(to + 20, ns % 1000000000, 9);
}

enum { ID = 32, TIME = 29, MAX_DEPTH = 98 };
#define DATA ",\"data\":"
#define OPENING "{\"specversion\":\"1.0\",\"id\":\""

/* Payloads */

/* Tell whether orjson may be handed a value as it is, as `values._is_plain` does: it runs no code of the value's. */
static int is_plain(PyObject *value, int room)
{
    if (PyUnicode_CheckExact(value) || PyLong_CheckExact(value) || value == Py_None || PyBool_Check(value))
        return 1;
    if (PyFloat_CheckExact(value))
        return isfinite(PyFloat_AS_DOUBLE(value));
    if (PyDict_CheckExact(value)) {
        PyObject *key, *item;
        Py_ssize_t at = 0;
        const int single = PyDict_GET_SIZE(value) == 1;
        if (!room)
            return 0;
        while (PyDict_Next(value, &at, &key, &item)) {
            if (single && (!PyUnicode_CheckExact(key) ||
                           (PyUnicode_GET_LENGTH(key) && PyUnicode_READ_CHAR(key, 0) == '$')))
                return 0;
            if (!is_plain(item, room - 1))
                return 0;
        }
        return 1;
    }
    if (!room)
        return 0;
    if (PyList_CheckExact(value)) {
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(value); i++)
            if (!is_plain(PyList_GET_ITEM(value, i), room - 1))
                return 0;
        return 1;
    }
    if (PyTuple_CheckExact(value)) {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(value); i++)
            if (!is_plain(PyTuple_GET_ITEM(value, i), room - 1))
                return 0;
        return 1;
    }
    return 0;
}

/* Tell whether a JSON text holds U+0085, U+2028 or U+2029, which are to be escaped. */
static int has_separators(const char *text, Py_ssize_t size)
{
    const unsigned char *at = (const unsigned char *)text, *const end = at + size;
    for (; at + 1 < end; at++) {
        if (*at < 0xc2)
            continue;
        if ((*at == 0xc2 && at[1] == 0x85) ||
            (*at == 0xe2 && at + 2 < end && at[1] == 0x80 && (at[2] == 0xa8 || at[2] == 0xa9)))
            return 1;
    }
    return 0;
}

static PyObject *dumps;

/* Give a plain payload as JSON text; Py_None where Python has to look at it; NULL where it cannot go on. */
static PyObject *encode_plain(PyObject *value, int room)
{
    if (!is_plain(value, room))
        Py_RETURN_NONE;
    PyObject *raw = PyObject_CallOneArg(dumps, value);
    if (!raw) {
        /* A lone surrogate, a big integer, a key that is no string. */
        if (!PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError))
            return NULL;
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    if (!PyBytes_CheckExact(raw) || has_separators(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))) {
        Py_DECREF(raw);
        Py_RETURN_NONE;
    }
    return raw;
}

static PyObject *py_encode_plain(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t given)
{
    if (given != 2)
        return PyErr_Format(PyExc_TypeError, "encode_plain() takes a value and an int");
    const long room = PyLong_AsLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    /* It bounds the stack that a payload can take. */
    if (room < 0 || room > 1000)
        return PyErr_Format(PyExc_ValueError, "room is not within 0 and 1000");
    return encode_plain(args[0], (int)room);
}

/* Parts */

enum { MAX_PART = (16 << 20) - 330 };
static const uint64_t YEAR_10000 = 253402300800;

/* Read an instant: the clock's for None. Gives 0 where Python has to look at it, -1 for an error. */
static int read_instant(PyObject *given, uint64_t *ns)
{
    if (given == Py_None) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        *ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
        return now.tv_sec >= 0 && (uint64_t)now.tv_sec < YEAR_10000;
    }
    if (!PyLong_CheckExact(given))
        return 0;
    int overflow;
    const long long value = PyLong_AsLongLongAndOverflow(given, &overflow);
    if (value == -1 && PyErr_Occurred())
        return -1;
    *ns = (uint64_t)value;
    return !overflow && value >= 0 && (uint64_t)value / 1000000000 < YEAR_10000;
}

/* Put a part together: `head` stands between id and time, `before` and `name` between time and payload. */
static PyObject *
assemble(PyObject *head, PyObject *before, const char *name, const char *payload, size_t payload_size, uint64_t ns)
{
    Py_ssize_t head_size, before_size;
    const char *const head_text = PyUnicode_AsUTF8AndSize(head, &head_size);
    const char *const before_text = head_text ? PyUnicode_AsUTF8AndSize(before, &before_size) : NULL;
    if (!before_text)
        return NULL;
    const size_t name_size = strlen(name);
    const size_t size =
        sizeof OPENING - 1 + ID + (size_t)head_size + TIME + (size_t)before_size + name_size + payload_size;
    if (size > MAX_PART)
        Py_RETURN_NONE;
    PyObject *part = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (!part)
        return NULL;
    char *at = PyBytes_AS_STRING(part);
    memcpy(at, OPENING, sizeof OPENING - 1);
    at += sizeof OPENING - 1;
    if (write_id(at, ns / 1000000) < 0) {
        Py_DECREF(part);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    memcpy(at += ID, head_text, (size_t)head_size);
    write_time(at += head_size, ns);
    memcpy(at += TIME, before_text, (size_t)before_size);
    at += before_size;
    memcpy(at, name, name_size);
    memcpy(at + name_size, payload, payload_size);
    return part;
}

/* event(heads: dict, key, before: str, data, ns: int | None) -> (id, part), or None where Python has to look at it

   `heads` gives what stands between id and time, as text, for a key. */
static PyObject *event(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t given)
{
    if (given != 5 || !PyDict_Check(args[0]))
        return PyErr_Format(PyExc_TypeError, "event() takes a dict, a key, a text, data and an instant");
    uint64_t ns;
    const int read = read_instant(args[4], &ns);
    PyObject *const head = read < 0 ? NULL : PyDict_GetItemWithError(args[0], args[1]);
    if (PyErr_Occurred())
        return NULL;
    if (!read || !head)
        Py_RETURN_NONE;
    PyObject *payload = NULL;
    /* It must outlive what runs from here on, whoever clears `heads`. */
    Py_INCREF(head);
    if (args[3] != Py_None) {
        payload = encode_plain(args[3], MAX_DEPTH);
        if (!payload || payload == Py_None) {
            Py_DECREF(head);
            return payload;
        }
    }
    PyObject *part = payload ? assemble(head, args[2], DATA, PyBytes_AS_STRING(payload),
                                        (size_t)PyBytes_GET_SIZE(payload), ns)
                             : assemble(head, args[2], "", "", 0, ns);
    Py_DECREF(head);
    Py_XDECREF(payload);
    if (!part || part == Py_None)
        return part;
    PyObject *id = PyUnicode_New(ID, 127);
    PyObject *both = id ? PyTuple_New(2) : NULL;
    if (!both) {
        Py_XDECREF(id);
        Py_DECREF(part);
        return NULL;
    }
    memcpy(PyUnicode_1BYTE_DATA(id), PyBytes_AS_STRING(part) + sizeof OPENING - 1, ID);
    PyTuple_SET_ITEM(both, 0, id);
    PyTuple_SET_ITEM(both, 1, part);
    return both;
}

/* telemetry(head: str, before: str, payload: str, ns: int | None) -> bytes, or None where Python has to look at it */
static PyObject *telemetry(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t given)
{
    if (given != 4)
        return PyErr_Format(PyExc_TypeError, "telemetry() takes three texts and an instant");
    uint64_t ns;
    Py_ssize_t size;
    const int read = read_instant(args[3], &ns);
    const char *const payload = read < 0 ? NULL : PyUnicode_AsUTF8AndSize(args[2], &size);
    if (!payload)
        return NULL;
    if (!read)
        Py_RETURN_NONE;
    return assemble(args[0], args[1], DATA, payload, (size_t)size, ns);
}

/* Append text to `at`, of which there is room for. */
static char *put(char *at, const char *text, size_t size)
{
    memcpy(at, text, size);
    return at + size;
}

#define PUT(at, literal) put(at, literal, sizeof(literal) - 1)

/* span(head, before, trace_id, span_id, flags, name, more, start, end, attributes, rest) -> bytes, or None where
   Python has to look at it

   Of an ended span with plain attributes. All are texts but `flags`, `start` and `end`, which are ints, and the dict
   of attributes; `name` is JSON, `more` and `rest` are members before the start and after the attributes. */
static PyObject *span(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t given)
{
    enum { HEAD, BEFORE, TRACE, SPAN, FLAGS, NAME, MORE, START, STOP, ATTRIBUTES, REST, COUNT };
    if (given != COUNT || !PyDict_CheckExact(args[ATTRIBUTES]))
        return PyErr_Format(PyExc_TypeError, "span() takes texts, three ints and a dict");
    uint64_t start, end;
    const int read_start = args[START] == Py_None ? 0 : read_instant(args[START], &start);
    const int read_end = args[STOP] == Py_None ? 0 : read_instant(args[STOP], &end);
    const long flags = PyLong_AsLong(args[FLAGS]);
    if (PyErr_Occurred())
        return NULL;
    if (!read_start || !read_end)
        Py_RETURN_NONE;
    static const int TEXTS[] = {TRACE, SPAN, NAME, MORE, REST};
    const char *text[COUNT];
    Py_ssize_t size[COUNT];
    size_t total = 0;
    for (size_t i = 0; i < sizeof TEXTS / sizeof *TEXTS; i++) {
        const int which = TEXTS[i];
        text[which] = PyUnicode_AsUTF8AndSize(args[which], &size[which]);
        if (!text[which])
            return NULL;
        total += (size_t)size[which];
    }
    PyObject *attributes = NULL;
    if (PyDict_GET_SIZE(args[ATTRIBUTES])) {
        attributes = encode_plain(args[ATTRIBUTES], MAX_DEPTH - 1);
        if (!attributes || attributes == Py_None)
            return attributes;
        total += (size_t)PyBytes_GET_SIZE(attributes);
    }
    /* The payload, and before it the header of the trace, which stands in front of it in the line. */
    char small[4096];
    char *const payload = total + 200 > sizeof small ? PyMem_Malloc(total + 200) : small;
    PyObject *part = NULL;
    if (!payload) {
        PyErr_NoMemory();
        goto done;
    }
    char *at = PUT(payload, ",\"traceparent\":\"00-");
    at = put(at, text[TRACE], (size_t)size[TRACE]);
    *at++ = '-';
    at = put(at, text[SPAN], (size_t)size[SPAN]);
    *at++ = '-';
    *at++ = HEX[flags >> 4 & 15];
    *at++ = HEX[flags & 15];
    at = PUT(at, "\",\"data\":{\"name\":");
    at = put(at, text[NAME], (size_t)size[NAME]);
    at = put(at, text[MORE], (size_t)size[MORE]);
    at = PUT(at, ",\"start\":");
    write_digits(at, start, (int)digits_of((long long)start));
    at += digits_of((long long)start);
    at = PUT(at, ",\"end\":");
    write_digits(at, end, (int)digits_of((long long)end));
    at += digits_of((long long)end);
    if (attributes) {
        at = PUT(at, ",\"attributes\":");
        at = put(at, PyBytes_AS_STRING(attributes), (size_t)PyBytes_GET_SIZE(attributes));
    }
    at = put(at, text[REST], (size_t)size[REST]);
    *at++ = '}';
    part = assemble(args[HEAD], args[BEFORE], "", payload, (size_t)(at - payload), end);
done:
    if (payload != small)
        PyMem_Free(payload);
    Py_XDECREF(attributes);
    return part;
}

/* Give `count` random bytes that are not all zero as hex text. */
static PyObject *random_id(size_t count)
{
    const uint8_t *random;
    int any = 0;
    do {
        random = take_random(count);
        if (!random)
            return PyErr_SetFromErrno(PyExc_OSError);
        for (size_t i = 0; i < count; i++)
            any |= random[i];
    } while (!any);
    PyObject *id = PyUnicode_New((Py_ssize_t)count * 2, 127);
    if (id)
        to_hex((char *)PyUnicode_1BYTE_DATA(id), random, (int)count);
    return id;
}

static PyObject *span_id(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(none))
{
    return random_id(8);
}

static PyObject *trace_id(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(none))
{
    return random_id(16);
}

/* copy_flat(attributes) -> a copy of a dict of texts, booleans and numbers under names, else None */
static PyObject *copy_flat(PyObject *Py_UNUSED(self), PyObject *given)
{
    PyObject *key, *item;
    Py_ssize_t at = 0;
    if (!PyDict_CheckExact(given))
        Py_RETURN_NONE;
    while (PyDict_Next(given, &at, &key, &item))
        if (!PyUnicode_CheckExact(key) || !PyUnicode_GET_LENGTH(key) ||
            !(PyUnicode_CheckExact(item) || PyBool_Check(item) || PyLong_CheckExact(item) || PyFloat_CheckExact(item)))
            Py_RETURN_NONE;
    return PyDict_Copy(given);
}

static PyMethodDef functions[] = {
#if HAVE_SHA
    {"stamp", (PyCFunction)(void (*)(void))stamp, METH_FASTCALL, NULL},
    {"check", (PyCFunction)(void (*)(void))check, METH_FASTCALL, NULL},
    {"grow", (PyCFunction)(void (*)(void))grow, METH_FASTCALL, NULL},
#endif
    {"encode_plain", (PyCFunction)(void (*)(void))py_encode_plain, METH_FASTCALL, NULL},
    {"event", (PyCFunction)(void (*)(void))event, METH_FASTCALL, NULL},
    {"span", (PyCFunction)(void (*)(void))span, METH_FASTCALL, NULL},
    {"span_id", span_id, METH_NOARGS, NULL},
    {"trace_id", trace_id, METH_NOARGS, NULL},
    {"copy_flat", copy_flat, METH_O, NULL},
    {"telemetry", (PyCFunction)(void (*)(void))telemetry, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "otledger._speed", NULL, -1, functions, 0, 0, 0, 0};

PyMODINIT_FUNC PyInit__speed(void)
{
    /* `dumps` is one for all, and would outlive the interpreter that it comes from. */
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "otledger._speed works in the main interpreter only");
        return NULL;
    }
    PyObject *orjson = PyImport_ImportModule("orjson");
    if (!orjson)
        return NULL;
    dumps = PyObject_GetAttrString(orjson, "dumps");
    Py_DECREF(orjson);
    PyObject *own = dumps ? PyModule_Create(&module) : NULL;
    int hashes = 0;
#if HAVE_SHA
    hashes = has_sha();
#endif
    if (!own || PyModule_AddIntConstant(own, "hashes", hashes) < 0 ||
        PyModule_AddStringConstant(own, "source", SOURCE) < 0)
        return NULL;
    if (pthread_atfork(NULL, NULL, forget_pool)) {
        PyErr_SetString(PyExc_RuntimeError, "pthread_atfork failed");
        return NULL;
    }
    return own;
}
