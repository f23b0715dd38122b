/* The hot loops of a training step on a CPU, in float32: what lies between two BatchNorm sums, in
 * one pass over a sample while it is in the cache. kernel.py compiles it for one architecture
 * (STAGES), fused.py owns every buffer. Results must never depend on the number of threads. */
#include <math.h>
#include <stdint.h>
#include <string.h>
typedef float vec __attribute__((vector_size(64))); /* a pixel: 16 channels, zero from co on */
typedef double dvec __attribute__((vector_size(128), aligned(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));
typedef int16_t halves __attribute__((vector_size(32)));
#define INLINE static inline __attribute__((always_inline))
#define EACH(i, n) for (int i = 0; i < (n); i++)
#define UNROLLED(i, n) _Pragma("GCC unroll 16") EACH(i, n)
enum { CHUNK = 16 }; /* samples summed up together: a constant, so that sums stay the same */
enum { A, B, MEAN, RSTD, GAMMA, BETA, C0, C1, C2 }; /* BatchNorm's vectors in a Task */

/* A stage: BatchNorm, leaky ReLU, max-pool and dropout of what the stage before left, convolution,
 * leaky ReLU. Sides: raw of its input, in after pooling, out; px: pixels of a row in registers. */
typedef struct { int k, pad, ci, co, raw, in, out, px_in, px_out; float slope_in, slope_out; } Of;
typedef struct {
    const float *images;         /* [n, in, in], the first stage's input; or of the others: */
    const vec *x;                /* [n, raw, raw], the stage before's y */
    vec *y;                      /* [n, out, out] */
    const vec *weight, *flipped; /* [k, k, ci]; [k, k, co], turned round, to go back */
    vec *before, *after;         /* of x, of y: A * y + B; its gradient C0 + C1 * y + C2 * gy */
    const vec *gy;               /* gradient of A * y + B, [n, out, out] */
    vec *gx, *gweight;           /* of x, [n, raw, raw]; [k, k, ci], `stride` apart per chunk */
    dvec *sums;                  /* [chunks, 2]: y, y * y; back: gx, gx * (x - MEAN); total in 0 */
    int64_t stride;
    int32_t n, threads, threshold, key[2]; /* the last two are dropout's; threshold 0: none */
    float scale, eps_x, eps_y;   /* 1 / (1 - rate); BatchNorm's, or negative where there is none */
} Task;
INLINE vec choose(ivec m, vec x, vec y) { return (vec)(((ivec)x & m) | ((ivec)y & ~m)); }
INLINE vec leaky(vec x, vec v, float s) { return s == 1 ? v : choose(x > (vec){}, v, v * s); }

/* What dropout multiplies each pixel by: the generator of layers.keep_mask, two pixels a turn. */
INLINE void dropout(const Task *t, int channels, int64_t first, int count, vec *factor) {
    const uint32_t w = channels / 2; /* words a pixel */
    const uvec lane = {0, 1, 2, 3, 4, 5, 6, 7, w, w + 1, w + 2, w + 3, w + 4, w + 5, w + 6, w + 7};
    const halves threshold = (halves){} + (int16_t)(t->threshold - 32768);
    for (int i = 0; i < count; i += 2) {
        union { uvec word; halves of[2]; } u;
        u.word = (lane + (uint32_t)(first + i) * w) * 0x9E3779B9u + (uint32_t)t->key[0];
        u.word = ((u.word ^ (u.word >> 16)) * 0x7FEB352Du) ^ (uint32_t)t->key[1];
        u.word = (u.word ^ (u.word >> 15)) * 0x846CA68Bu;
        u.word ^= u.word >> 16;
        UNROLLED(j, 2) factor[i + j] = (vec)((ivec)((vec){} + t->scale) &
            __builtin_convertvector(u.of[j] >= threshold, ivec));
    }
}

/* out [side, side] = in [side + k - 1, w, step floats] * weight [k, k, ci]; meanwhile `ahead`,
 * which the next sample needs, is fetched into the cache, `lines` at a time. */
INLINE void conv(const float *in, int w, int step, int k, int ci, const vec *weight, int side,
                 int px, vec *out, const vec *ahead, int lines) {
    EACH(r, side) for (int x = 0; x < side; x += px) {
        vec acc[14] = {};
        UNROLLED(j, lines) __builtin_prefetch(ahead++);
        EACH(kh, k) EACH(kw, k) EACH(c, ci) {
            const vec v = weight[(kh * k + kw) * ci + c];
            UNROLLED(j, px) acc[j] += in[((r + kh) * w + x + kw + j) * step + c] * v;
        }
        UNROLLED(j, px) out[r * side + x + j] = acc[j];
    }
}

/* grad [k, k, ci] += in [side + k - 1, w, step floats] times g [side, gw] */
INLINE void wgrad(const float *in, int w, int step, int k, int ci, const vec *g, int gw, int side,
                  vec *grad, const vec *ahead[2]) {
    const int many = ci > 1 ? ci : k; /* a row of taps together where there is but one channel */
    EACH(t, k * k * ci / many) {
        const float *from = in + (ci > 1 ? t / k * w + t % k : t * w) * step;
        vec acc[16] = {};
        EACH(r, side) EACH(x, side) {
            if (t < 2) __builtin_prefetch(ahead[t] + r * side + x);
            UNROLLED(j, many) acc[j] += from[(r * w + x) * step + j] * g[r * gw + x];
        }
        UNROLLED(j, many) grad[t * many + j] += acc[j];
    }
}

/* The largest of A * x + B at x and the three pixels beside and below, and which one it is. */
INLINE ivec largest(const vec *x, int w, int pool, const vec *norm, vec *u) {
    ivec where = {};
    *u = *x * norm[A] + norm[B];
    if (pool == 2) UNROLLED(j, 3) {
        const vec v = x[(j + 1) / 2 * w + (j + 1) % 2] * norm[A] + norm[B];
        const ivec m = v > *u;
        *u = choose(m, v, *u);
        where = (m & (j + 1)) | (where & ~m);
    }
    return where;
}

/* The convolution's padded input d for sample n; factor: of activation and dropout, together. */
INLINE void input(Of f, const Task *t, int64_t n, vec *d, vec *factor) {
    const int w = f.in + 2 * f.pad, pool = f.raw / f.in, first = f.pad * w + f.pad;
    if (f.ci == 1) {
        float *to = (float *)d + first;
        EACH(r, f.in) memcpy(to + r * w, t->images + (n * f.in + r) * f.in, f.in * 4);
        return;
    }
    if (t->threshold) dropout(t, f.ci, n * f.in * f.in, f.in * f.in, factor);
    else EACH(i, f.in * f.in) factor[i] = (vec){} + 1;
    const vec norm[] = {t->before[A], t->before[B]};
    EACH(r, f.in) EACH(c, f.in) {
        vec u, *v = factor + r * f.in + c;
        largest(t->x + (n * f.raw + r * pool) * f.raw + c * pool, f.raw, pool, norm, &u);
        *v = leaky(u, *v, f.slope_in);
        d[first + r * w + c] = u * *v;
    }
}

INLINE void forward_chunk(Of f, const Task *t, int64_t n, int64_t end, dvec *sums) {
    const int w = f.in + 2 * f.pad, area = f.out * f.out, raw = f.ci > 1 ? f.raw * f.raw : 0;
    vec d[w * w], factor[f.in * f.in + 1];
    memset(d, 0, sizeof d);
    for (sums[0] = sums[1] = (dvec){}; n < end; n++) {
        vec *y = t->y + n * area, sum = {}, squares = {};
        input(f, t, n, d, factor);
        conv((float *)d, w, f.ci > 1 ? 16 : 1, f.k, f.ci, t->weight, f.out, f.px_out, y,
             t->x + (n + 1) * raw, raw * f.px_out / area);
        EACH(i, area) {
            y[i] = leaky(y[i], y[i], f.slope_out);
            sum += y[i], squares += y[i] * y[i];
        }
        sums[0] += __builtin_convertvector(sum, dvec);
        sums[1] += __builtin_convertvector(squares, dvec);
    }
}

INLINE void backward_chunk(Of f, const Task *t, int64_t n, int64_t end, dvec *sums, vec *grad) {
    const int w = f.in + 2 * f.pad, q = f.k - 1 - f.pad, gw = f.out + 2 * q, area = f.out * f.out;
    const int pool = f.raw / f.in, raw = f.raw * f.raw; /* q: what padding the way back needs */
    const vec norm[] = {t->before[A], t->before[B]}, c0 = t->after[C0], c1 = t->after[C1];
    vec d[w * w], g[gw * gw], gd[f.in * f.in], factor[f.in * f.in + 1];
    memset(d, 0, sizeof d);
    memset(g, 0, sizeof g);
    memset(grad, 0, f.k * f.k * f.ci * sizeof *grad);
    for (sums[0] = sums[1] = (dvec){}; n < end; n++) {
        const vec *x = t->x + n * raw, *y = t->y + n * area, *gy = t->gy + n * area;
        vec *gx = t->gx + n * raw, sum = {}, products = {};
        EACH(r, f.out) EACH(c, f.out) {
            const vec yi = y[r * f.out + c], v = gy[r * f.out + c] * t->after[C2] + yi * c1 + c0;
            g[(r + q) * gw + c + q] = leaky(yi, v, f.slope_out);
        }
        input(f, t, n, d, factor);
        wgrad((float *)d, w, f.ci > 1 ? 16 : 1, f.k, f.ci, g + q * gw + q, gw, f.out, grad,
              (const vec *[]){y + area, gy + area});
        if (f.ci == 1) continue;
        conv((float *)g, gw, 16, f.k, f.co, t->flipped, f.in, f.px_in, gd, x + raw,
             pool * pool * f.px_in);
        if (f.raw % f.in) memset(gx, 0, raw * sizeof *gx);
        EACH(r, f.in) EACH(c, f.in) {
            const int i = (r * f.raw + c) * pool;
            vec u, v = gd[r * f.in + c] * factor[r * f.in + c];
            const ivec where = largest(x + i, f.raw, pool, norm, &u);
            UNROLLED(j, pool * pool) {
                const int o = i + j / 2 * f.raw + j % 2;
                gx[o] = choose(where == j, v, (vec){});
                sum += gx[o], products += gx[o] * (x[o] - t->before[MEAN]);
            }
        }
        sums[0] += __builtin_convertvector(sum, dvec);
        sums[1] += __builtin_convertvector(products, dvec);
    }
}

/* Add up the chunks; then BatchNorm's factors, or in the way back those of its gradient. */
static void normalise(dvec *sums, int chunks, double count, float eps, int back, vec *v) {
    for (int c = 2; c < 2 * chunks; c++) sums[c % 2] += sums[c];
    if (eps >= 0) EACH(j, 16) {
        const double mean = sums[0][j] / count, second = sums[1][j] / count;
        if (back) {
            v[C1][j] = -v[A][j] * v[RSTD][j] * v[RSTD][j] * second;
            v[C0][j] = -v[A][j] * mean - v[C1][j] * v[MEAN][j];
            v[C2][j] = v[A][j];
        } else {
            v[MEAN][j] = mean;
            v[RSTD][j] = 1 / sqrt(fmax(second - mean * mean, 0) + eps);
            v[A][j] = v[GAMMA][j] * v[RSTD][j];
            v[B][j] = v[BETA][j] - mean * v[A][j];
        }
    }
}
#define CHUNKS(call) const int chunks = (t->n + CHUNK - 1) / CHUNK; \
    _Pragma("omp parallel for schedule(dynamic) num_threads(t->threads)") EACH(i, chunks) { \
        const int64_t n = (int64_t)i * CHUNK, end = n + CHUNK < t->n ? n + CHUNK : t->n; call; }
#define STAGE(I, ...) static const Of f##I = {__VA_ARGS__}; \
    void forward_##I(const Task *t) { \
        CHUNKS(forward_chunk(f##I, t, n, end, t->sums + 2 * i)) \
        normalise(t->sums, chunks, (double)t->n * f##I.out * f##I.out, t->eps_y, 0, t->after); } \
    void backward_##I(const Task *t) { \
        CHUNKS(backward_chunk(f##I, t, n, end, t->sums + 2 * i, t->gweight + i * t->stride)) \
        normalise(t->sums, chunks, (double)t->n * f##I.raw * f##I.raw, t->eps_x, 1, t->before); \
        for (int64_t i = 1; i < chunks; i++) EACH(j, f##I.k * f##I.k * f##I.ci) \
            t->gweight[j] += t->gweight[i * t->stride + j]; }
STAGES
