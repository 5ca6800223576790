/* Llama on a CPU: the whole step in C, so that a token costs little more than reading the weights once.

   kernels.h and forward.h are compiled once per instruction set, by function attributes, and the best set that the
   processor has is chosen at run time. Threads are our own, since torch brings an OpenMP of its own: they sleep
   between steps and spin between the phases of a step. library.py holds the Python side of the structures. */

#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define CHUNK 32           /* keys that attention takes at a time, a multiple of 32 */
#define TILE_QUERIES 64    /* queries of one kv head that share a chunk */
#define PREFETCH 8192      /* bytes ahead */
#define ROUND(n) (((n) + 31) & ~(int64_t)31)

enum { F32, BF16, INT8, INT8_WEIGHTS };

/* A packed matrix: words [panels][steps][32] of 4 bytes; int8 with a scale for each output. */
typedef struct {
    const uint8_t *words;
    const float *scale;
    int64_t steps, panels, kind;
} Matrix;

/* Activations as a kind of matrix multiplies with them; int8 with a scale and a sum for each row. */
typedef struct {
    uint8_t *data;
    int64_t stride; /* bytes */
    float *scale;
    int32_t *sum;
} Rows;

typedef struct {
    int64_t layers, dim, heads, kv_heads, head_dim, ffn, embed_kind;
    double norm_eps;
    const void *embed;      /* [vocab, dim] */
    const float *inv_freq;  /* [head_dim / 2] */
    const float *norms;     /* [layers][before attention, before ffn], then the last; [dim rounded up to 32], zeros after */
    const Matrix *matrices; /* [layers][qkv, out, gate and up by turns of a panel, down], then the output matrix */
} Model;

/* Rows are tokens, those of a sequence side by side: sequence s has rows starts[s] to starts[s + 1], which are the last
   of its lengths[s] tokens. `cache` is [layers, 2, blocks, block_size, kv_heads, head_dim]. */
typedef struct {
    int64_t sequences, rows, table_stride, cache_kind, blocks, block_size, threads;
    const int32_t *tokens, *starts, *lengths, *tables;
    void *cache;
    float *hidden; /* [rows, dim rounded up to 32], zeros after dim */
    float *logits; /* [rows, vocab rounded up to 32] */
} Batch;

typedef struct Pass {
    const Model *model;
    const Batch *batch;
    void (*work)(struct Pass *, int);
    int64_t dim, ffn, qkv_stride, tile, tiles, scratch_size; /* dim and ffn rounded up to 32 */
    int32_t *position, *sequence, *tile_row;
    float *residual, *qkv, *mixed, *hidden, *scratch;
    Rows x;
    int threads;
    atomic_long next;              /* what of the phase nobody has taken yet */
    atomic_int arrived, phase;
} Pass;

/* Shares of a phase are taken as threads come free: cores differ in speed, and other programs take some. */
static int take(Pass *p, int64_t total, int64_t *first, int64_t *last) {
    int64_t share = p->threads == 1 ? total : total / (4 * p->threads) + 1;
    *first = atomic_fetch_add(&p->next, share);
    *last = *first + share < total ? *first + share : total;
    return *first < total;
}
#define EACH(p, i, total) \
    for (int64_t first_, last_; take(p, total, &first_, &last_);) for (int64_t i = first_; i < last_; i++)

static void meet(Pass *p) {
    int phase = atomic_load(&p->phase);
    if (atomic_fetch_add(&p->arrived, 1) == p->threads - 1) {
        atomic_store(&p->arrived, 0);
        atomic_store(&p->next, 0);
        atomic_store(&p->phase, phase + 1);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&p->phase, memory_order_acquire) == phase; spins++) {
        if (spins > 4000) sched_yield(); /* more threads than cores: let the others work */
#if defined(__x86_64__)
        else _mm_pause();
#endif
    }
}

static uint16_t to_bf16(float value) {
    union { float value; uint32_t bits; } word = {value};
    return (word.bits + 0x7fff + ((word.bits >> 16) & 1)) >> 16;
}

static float from_bf16(uint16_t half) {
    union { uint32_t bits; float value; } word = {(uint32_t)half << 16};
    return word.value;
}

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(function) JOIN(function, SET)

/* vectors that fill a register of the set, defined in kernels.h */
#define VF NAME(floats)
#define VI NAME(ints)
#define VU NAME(unsigneds)
#define VS NAME(shorts)
#define VH NAME(halves)
#define VB NAME(bytes)
#define PARTS (32 / LANES) /* of a panel's step */

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (VI){__VA_ARGS__})
#endif
#define ZIP_LOW(a, b) SHUFFLE(a, b, JOIN(LOW, LANES))
#define ZIP_HIGH(a, b) SHUFFLE(a, b, JOIN(HIGH, LANES))
#define LOW_4 0, 4, 1, 5
#define HIGH_4 2, 6, 3, 7
#define LOW_8 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH_8 4, 12, 5, 13, 6, 14, 7, 15
#define LOW_16 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH_16 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31

#define SET plain
#define TARGET
#define LANES 4
#if defined(__aarch64__)
#define TALL 2
#else
#define TALL 1
#endif
#include "kernels.h"
#include "forward.h"
#undef SET
#undef TARGET
#undef LANES
#undef TALL
#undef INLINE

#if defined(__x86_64__)
#define SET avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define TALL 3
#define HALF 1
#include "kernels.h"
#include "forward.h"
#undef SET
#undef TARGET
#undef LANES
#undef TALL
#undef HALF
#undef INLINE

#define LANES 16
#define TALL 8
#define SET avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define WIDE 1
#include "kernels.h"
#include "forward.h"
#undef SET
#undef TARGET
#undef INLINE

#define SET avx512_vnni
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")))
#define DOT_INT8 1
#include "kernels.h"
#include "forward.h"
#undef SET
#undef TARGET
#undef INLINE

#define SET avx512_bf16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma")))
#define DOT_BF16 1
#include "kernels.h"
#include "forward.h"
#endif

typedef void (*Work)(Pass *, int);
typedef struct { Work forward, output; } Set;

/* The instruction sets, the slowest first; NULL where this processor lacks one. */
static Set set(int i) {
#define AS(name) (Set){forward_##name, output_##name}
#if defined(__x86_64__)
#define HAS(name) __builtin_cpu_supports(name)
    int avx512 = HAS("avx512f") && HAS("avx512bw") && HAS("avx512dq") && HAS("avx512vl");
    if (i == 1 && HAS("avx2") && HAS("fma")) return AS(avx2);
    if (i == 2 && avx512) return AS(avx512);
    if (i == 3 && avx512 && HAS("avx512vnni")) return AS(avx512_vnni);
    if (i == 4 && avx512 && HAS("avx512vnni") && HAS("avx512bf16")) return AS(avx512_bf16);
#endif
    return i == 0 ? AS(plain) : (Set){NULL, NULL};
}

int puna_has(int i) { return set(i).forward != NULL; }
int64_t puna_sizes(void) { return sizeof(Matrix) + 1000 * sizeof(Model) + 1000000 * sizeof(Batch); }

/* Threads, started once for the process and asleep between steps. */
static struct {
    pthread_mutex_t use, lock; /* one step at a time; the fields below */
    pthread_cond_t wake, done;
    Pass *pass;
    int threads, taking_part, working; /* besides the caller's */
    int64_t step;
    pid_t owner;
} pool = {.use = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static void *work(void *number) {
    int64_t seen = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.step == seen) pthread_cond_wait(&pool.wake, &pool.lock);
        seen = pool.step;
        if ((intptr_t)number > pool.taking_part) continue;
        Pass *p = pool.pass;
        pthread_mutex_unlock(&pool.lock);
        p->work(p, (intptr_t)number);
        pthread_mutex_lock(&pool.lock);
        if (--pool.working == 0) pthread_cond_signal(&pool.done);
    }
    return NULL;
}

/* Run the pass on p->threads threads, fewer where no more can be started. */
static void run(Pass *p) {
    pthread_mutex_lock(&pool.use);
    pthread_mutex_lock(&pool.lock);
    if (pool.owner != getpid()) pool.owner = getpid(), pool.threads = 0; /* after fork() there are none */
    while (pool.threads < p->threads - 1) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, (void *)(intptr_t)(pool.threads + 1))) break;
        pthread_detach(thread);
        pool.threads++;
    }
    if (p->threads > pool.threads + 1) p->threads = pool.threads + 1;
    pool.pass = p, pool.taking_part = pool.working = p->threads - 1;
    pool.step++;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    p->work(p, 0);
    pthread_mutex_lock(&pool.lock);
    while (pool.working) pthread_cond_wait(&pool.done, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.use);
}

/* Memory for arrays of these sizes, each rounded up, zero for the ends of rounded rows; and for `more`, as it is. */
static void *zeros(const int64_t *sizes, int count, int64_t more) {
    void *memory = NULL;
    int64_t total = 0;
    for (int i = 0; i < count; i++) total += ROUND(sizes[i]);
    if (posix_memalign(&memory, 64, 4 * (total + more))) return NULL;
    return memset(memory, 0, 4 * total);
}

static void *part(float **at, int64_t size) {
    float *start = *at;
    *at += ROUND(size);
    return start;
}

/* Append the rows to the cache and give their final hidden states. Returns 0, or 1 where memory is short. */
int puna_hidden(const Model *m, const Batch *b, int instructions) {
    int64_t rows = b->rows, n = m->head_dim, group = m->heads / m->kv_heads;
    Pass p = {.model = m, .batch = b, .work = set(instructions).forward, .threads = (int)b->threads};
    p.dim = ROUND(m->dim), p.ffn = ROUND(m->ffn), p.qkv_stride = m->matrices[0].panels * 32;
    p.tile = TILE_QUERIES > group ? TILE_QUERIES / group : 1;

    /* what a thread needs: the arrays of attend(), or of gated(), or a row */
    int64_t queries = p.tile * group, most = p.dim > rows * 80 ? p.dim : rows * 80;
    int64_t attention = queries * (2 * ROUND(n) + CHUNK + 34) + CHUNK * (n + ROUND(n));
    p.scratch_size = ROUND(attention > most ? attention : most);
    p.x.stride = 4 * (p.dim > p.ffn ? p.dim : p.ffn) + 64; /* not a power of two, as in attend() */
    int64_t sizes[] = {
        rows * p.dim, rows * p.qkv_stride, rows * p.dim, rows * p.ffn, rows * p.x.stride / 4, 5 * rows,
    };
    float *memory = zeros(sizes, 6, p.threads * p.scratch_size), *at = memory;
    if (!memory) return 1;
    p.residual = part(&at, sizes[0]), p.qkv = part(&at, sizes[1]), p.mixed = part(&at, sizes[2]);
    p.hidden = part(&at, sizes[3]), p.x.data = part(&at, sizes[4]), p.scratch = at + ROUND(sizes[5]);
    p.x.scale = at, p.x.sum = (int32_t *)at + rows;
    p.position = p.x.sum + rows, p.sequence = p.position + rows, p.tile_row = p.sequence + rows;
    for (int64_t s = 0; s < b->sequences; s++)
        for (int64_t row = b->starts[s]; row < b->starts[s + 1]; row++) {
            p.sequence[row] = s;
            p.position[row] = b->lengths[s] - b->starts[s + 1] + row;
            if ((row - b->starts[s]) % p.tile == 0) p.tile_row[p.tiles++] = row;
        }
    run(&p);
    free(memory);
    return 0;
}

/* Logits of b->hidden, of b->rows rows. Returns as above. */
int puna_logits(const Model *m, const Batch *b, int instructions) {
    Pass p = {.model = m, .batch = b, .work = set(instructions).output, .threads = (int)b->threads, .dim = ROUND(m->dim)};
    p.x.stride = 4 * p.dim + 64;
    int64_t sizes[] = {b->rows * p.x.stride / 4, 2 * b->rows};
    float *memory = zeros(sizes, 2, 0), *at = memory;
    if (!memory) return 1;
    p.x.data = part(&at, sizes[0]), p.x.scale = at, p.x.sum = (int32_t *)at + b->rows;
    run(&p);
    free(memory);
    return 0;
}
