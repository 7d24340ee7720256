// Kernels of `compile`: dense layers, attention over pages, one whole layer of the Llama form, in float32; the draw.
//
// Law: what is computed for a row (a node of the call) is the same sequence of float operations whatever the number of
// rows, their order, the pages its text lies in and the number of threads: sums run over the inputs of a layer in
// order, over the columns of a text in order (eight lanes by absolute column), and no loop's remainder has code of its
// own. Work is shared out over outputs, rows and heads, never inside a sum.
//
// Vectors are GCC's, eight floats wide: AVX2 and wider, NEON as two. `native.py` builds this and knows the structs.

#ifdef __FMA__
#include <immintrin.h>
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef uint32_t w8 __attribute__((vector_size(32)));
typedef uint32_t w8u __attribute__((vector_size(32), aligned(4)));
typedef int8_t b8u __attribute__((vector_size(8), aligned(1)));
#define INLINE static inline __attribute__((always_inline))

static constexpr int64_t PAGE = RAYDECODE_PAGE;  // columns of a page, a power of two
static constexpr int64_t PANEL = 16;  // outputs of a layer that lie side by side
static constexpr int64_t UNIT = 6;    // panels of one piece of work: what one row's twelve sums take
static constexpr int64_t BLOCK = 48;  // rows of one piece of work

INLINE v8 load(const float* p) { return *(const v8u*)p; }
INLINE void store(float* p, v8 x) { *(v8u*)p = x; }
INLINE v8 fma8(v8 a, v8 b, v8 c) {  // said, not left to the compiler: a * b + c elsewhere is two roundings everywhere
#if defined(__FMA__)
  return (v8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FP_FAST_FMAF)
  for (int i = 0; i < 8; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}
INLINE v8 all(float x) { return v8{x, x, x, x, x, x, x, x}; }

// ------------------------------------------------------------------ dense layers
// A weight is panels of 16 outputs, [panels][in][16]; kind: 0 float, 1 upper halves of floats (output j below j + 8 in
// one word), 2 bytes with a scale per output.
struct Weight {
  const void* data;
  const float *scale, *bias;
  int64_t in, out, kind;
};

struct Whole {
  typedef float T;
  static constexpr int64_t STEP = 16;
  INLINE void read(const T* p, v8& low, v8& high) { low = load(p), high = load(p + 8); }
};
struct Half {
  typedef uint32_t T;
  static constexpr int64_t STEP = 8;
  INLINE void read(const T* p, v8& low, v8& high) {
    w8 both = *(const w8u*)p;
    low = (v8)(both << 16), high = (v8)(both & 0xffff0000u);
  }
};
struct Byte {
  typedef int8_t T;
  static constexpr int64_t STEP = 16;
  INLINE void read(const T* p, v8& low, v8& high) {
#ifdef __AVX2__  // GCC 12 takes the portable form apart, one weight after another
    __m128i both = _mm_loadu_si128((const __m128i*)p);
    low = (v8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(both));
    high = (v8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(both, 8)));
#else
    low = __builtin_convertvector(*(const b8u*)p, v8), high = __builtin_convertvector(*(const b8u*)(p + 8), v8);
#endif
  }
};

// R rows by P panels: 2 R P sums in registers, each over k in order. Twelve sums fit beside one weight, one input and a
// mask; with P > 1 the inputs stay in registers too, so that eight do: a thirteenth value in memory halves the speed.
template <class W, int R, int P>
INLINE void tile(const typename W::T* w, int64_t panel, const float* x, int64_t ldx, int64_t in, float* sums) {
  v8 sum[R][P][2] = {};
  for (int64_t k = 0; k < in; k++) {
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      v8 low, high;
      W::read(w + p * panel + k * W::STEP, low, high);
      __builtin_prefetch((const char*)(w + p * panel + k * W::STEP) + (R == 1 ? 640 : 2048));
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        v8 one = all(x[r * ldx + k]);
        sum[r][p][0] = fma8(low, one, sum[r][p][0]);
        sum[r][p][1] = fma8(high, one, sum[r][p][1]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      store(sums + (r * P + p) * PANEL, sum[r][p][0]);
      store(sums + (r * P + p) * PANEL + 8, sum[r][p][1]);
    }
}

template <class W, int R, int P>
static void rows(const Weight& w, int64_t first, int64_t last, const float* x, int64_t ldx, float* y, int64_t ldy,
                 const float* add) {
  const typename W::T* data = (const typename W::T*)w.data;
  const int64_t size = w.in * W::STEP;
  float sums[R * P * PANEL] __attribute__((aligned(32)));
  for (int64_t panel = first; panel < last; panel += P) {
    if (P > 1 && panel + P > last) {  // too few panels for P: one by one, the same sums
      for (; panel < last; panel++) rows<W, R, 1>(w, panel, panel + 1, x, ldx, y, ldy, add);
      return;
    }
    tile<W, R, P>(data + panel * size, size, x, ldx, w.in, sums);
    for (int r = 0; r < R; r++) {
      int64_t begin = panel * PANEL, end = begin + P * PANEL < w.out ? begin + P * PANEL : w.out;
      const float* sum = sums + r * P * PANEL - begin;
      for (int64_t j = begin; j < end; j++) {
        float out = sum[j];
        if (w.scale) out *= w.scale[j];
        if (w.bias) out += w.bias[j];
        if (add) out += add[r * ldy + j];
        y[r * ldy + j] = out;
      }
    }
  }
}

template <class W>
static void piece(const Weight& w, int64_t first, int64_t last, const float* x, int64_t ldx, int64_t count, float* y,
                  int64_t ldy, const float* add) {
  int64_t r = 0;
#define ROWS(R, P) rows<W, R, P>(w, first, last, x + r * ldx, ldx, y + r * ldy, ldy, add ? add + r * ldy : nullptr)
  while (count - r >= 6) {  // fives where three or four would be left: those make less of each weight
    const int64_t left = (count - r) % 6;
    if (left == 3 || left == 4) {
      ROWS(5, 1);
      r += 5;
    } else {
      ROWS(6, 1);
      r += 6;
    }
  }
  switch (count - r) {
    case 1: ROWS(1, 6); break;
    case 2: ROWS(2, 2); break;
    case 3: ROWS(3, 1); break;
    case 4: ROWS(4, 1); break;
    case 5: ROWS(5, 1); break;
  }
#undef ROWS
}

// Inside a parallel region: y[count, out] = x W^T (+ bias) (+ add).
static void dense(const Weight& w, const float* x, int64_t ldx, int64_t count, float* y, int64_t ldy, const float* add,
                  int64_t threads) {
  const int64_t panels = (w.out + PANEL - 1) / PANEL, share = (panels + threads - 1) / threads;
  const int64_t unit = share < UNIT ? share : UNIT, units = (panels + unit - 1) / unit;
  const int64_t blocks = (count + BLOCK - 1) / BLOCK;
#pragma omp for collapse(2) schedule(static)
  for (int64_t b = 0; b < blocks; b++)
    for (int64_t u = 0; u < units; u++) {
      int64_t first = u * unit, last = first + unit < panels ? first + unit : panels, r = b * BLOCK;
      int64_t some = r + BLOCK < count ? BLOCK : count - r;
      const float* beside = add ? add + r * ldy : nullptr;
      if (w.kind == 0) piece<Whole>(w, first, last, x + r * ldx, ldx, some, y + r * ldy, ldy, beside);
      if (w.kind == 1) piece<Half>(w, first, last, x + r * ldx, ldx, some, y + r * ldy, ldy, beside);
      if (w.kind == 2) piece<Byte>(w, first, last, x + r * ldx, ldx, some, y + r * ldy, ldy, beside);
    }
}

// ------------------------------------------------------------------ row by row
INLINE v8 exp8(v8 given) {  // Cephes' expf; NaN stays NaN, below -87 is 0
  v8 x = given < -87.0f ? all(-87.0f) : given;
  x = x > 88.0f ? all(88.0f) : x;
  v8 shifted = fma8(x, all(1.44269504088896341f), all(12582912.0f));
  v8 n = shifted - 12582912.0f;
  v8 r = fma8(n, all(-0.693359375f), x);
  r = fma8(n, all(2.12194440e-4f), r);
  v8 p = fma8(r, all(1.9875691500e-4f), all(1.3981999507e-3f));
  for (float next : {8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = fma8(p, r, all(next));
  p = fma8(p, r * r, r) + 1.0f;
  v8 out = (v8)((i8)p + ((i8)shifted << 23));
  out = given < -87.0f ? all(0.0f) : out;
  return given == given ? out : given;
}

INLINE float total(v8 x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }

// Eight vectors' totals.
INLINE v8 totals(const v8* x) {
  v8 half[4], quarter[2];
  for (int i = 0; i < 4; i++)
    half[i] = __builtin_shuffle(x[2 * i], x[2 * i + 1], (i8){0, 8, 2, 10, 4, 12, 6, 14}) +
              __builtin_shuffle(x[2 * i], x[2 * i + 1], (i8){1, 9, 3, 11, 5, 13, 7, 15});
  for (int i = 0; i < 2; i++)
    quarter[i] = __builtin_shuffle(half[2 * i], half[2 * i + 1], (i8){0, 1, 8, 9, 4, 5, 12, 13}) +
                 __builtin_shuffle(half[2 * i], half[2 * i + 1], (i8){2, 3, 10, 11, 6, 7, 14, 15});
  return __builtin_shuffle(quarter[0], quarter[1], (i8){0, 1, 2, 3, 8, 9, 10, 11}) +
         __builtin_shuffle(quarter[0], quarter[1], (i8){4, 5, 6, 7, 12, 13, 14, 15});
}

static void norm(const float* x, const float* weight, int64_t size, float eps, float* y) {
  v8 sum = {};
  int64_t i = 0;
  float rest = 0;
  for (; i + 8 <= size; i += 8) sum = fma8(load(x + i), load(x + i), sum);
  for (; i < size; i++) rest += x[i] * x[i];
  float scale = 1.0f / std::sqrt((total(sum) + rest) / (float)size + eps);
  for (i = 0; i < size; i++) y[i] = weight[i] * (x[i] * scale);
}

static void turn(const float* x, const float* cos, const float* sin, int64_t size, float* y) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; i++) {
    float a = x[i], b = x[i + half];
    y[i] = a * cos[i] - b * sin[i];
    y[i + half] = b * cos[i + half] + a * sin[i + half];
  }
}

static void gate(const float* x, int64_t size, float* y) {  // silu(gate) * up; gate and up side by side
  float rest[8] = {}, other[8] = {};
  for (int64_t i = 0; i < size; i += 8) {
    const bool whole = i + 8 <= size;
    if (!whole) {
      std::memcpy(rest, x + i, (size - i) * sizeof(float));
      std::memcpy(other, x + size + i, (size - i) * sizeof(float));
    }
    v8 g = load(whole ? x + i : rest), up = load(whole ? x + size + i : other);
    v8 out = g / (1.0f + exp8(-g)) * up;
    if (whole) {
      store(y + i, out);
    } else {
      store(rest, out);
      std::memcpy(y + i, rest, (size - i) * sizeof(float));
    }
  }
}

// ------------------------------------------------------------------ attention
// Node m attends to the first `base` columns of a table of pages, then to `more` columns that are named one by one
// (page * PAGE + offset): its own path through a tree.
struct Paths {
  int64_t nodes;
  const int64_t *page_M, *offset_M;  // where the node's own column lies
  const int32_t *tables, *others;
  const int64_t *table_M, *base_M, *other_M, *more_M;
};

struct Pool {  // [pages][heads][PAGE][size], keys and values
  float *keys, *values;
  int64_t heads, size, value_size;
};

INLINE int64_t column(const Paths& at, int64_t m, int64_t c) {
  if (c >= at.base_M[m]) return at.others[at.other_M[m] + c - at.base_M[m]];
  return at.tables[at.table_M[m] + (uint64_t)c / PAGE] * PAGE + (uint64_t)c % PAGE;
}

INLINE const float* cell(const float* pool, uint64_t place, int64_t head, int64_t heads, int64_t size) {
  return pool + ((place / PAGE * heads + head) * PAGE + place % PAGE) * size;
}

template <int N>
INLINE void weigh(const float* const* values, const float* weight, int64_t count, int64_t at, float* out) {
  v8 sum[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) sum[i] = load(out + at + 8 * i);
  for (int64_t c = 0; c < count; c++) {
    v8 w = all(weight[c]);
    const float* value = values[c] + at;
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) sum[i] = fma8(w, load(value + 8 * i), sum[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) store(out + at + 8 * i, sum[i]);
}

// One node, `group` query heads of one key head. query: heads step apart; out: [group][value_size].
static void attend_one(const Paths& at, const Pool& pool, int64_t m, int64_t head, int64_t group, const float* query,
                       int64_t step, float* out, float scale, float cap, int64_t window) {
  static constexpr int64_t SOME = 64;
  const int64_t count = at.base_M[m] + at.more_M[m], size = pool.size, wide = pool.value_size;
  const int64_t begin = window > 0 && count > window ? count - window : 0, first = begin / 8 * 8;
  const int64_t length = (count - first + 7) / 8 * 8;
  static thread_local std::vector<float> scores;
  scores.resize(group * length);
  for (int64_t c = first; c < first + length; c += 8) {
    const float* key[8];
    float outside[8] = {};
    for (int64_t i = 0; i < 8; i++) {
      int64_t one = c + i < begin ? begin : c + i < count ? c + i : count - 1;
      if (one != c + i) outside[i] = 1;
      key[i] = cell(pool.keys, column(at, m, one), head, pool.heads, size);
    }
    for (int64_t g = 0; g < group; g++) {
      const float* q = query + g * step;
      v8 sum[8] = {};
      int64_t d = 0;
      for (; d + 8 <= size; d += 8) {
        v8 part = load(q + d);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) sum[i] = fma8(part, load(key[i] + d), sum[i]);
      }
      v8 score = totals(sum);
      for (; d < size; d++)
        for (int i = 0; i < 8; i++) score[i] += q[d] * key[i][d];
      score *= scale;
      if (cap > 0)
        for (int i = 0; i < 8; i++) score[i] = std::tanh(score[i] / cap) * cap;
      score = load(outside) > 0.0f ? all(-INFINITY) : score;
      store(&scores[g * length + c - first], score);
    }
  }
  std::memset(out, 0, group * wide * sizeof(float));
  float divide[group];
  for (int64_t g = 0; g < group; g++) {
    float* score = &scores[g * length];
    v8 most = all(-INFINITY), sum = {};
    for (int64_t c = 0; c < length; c += 8) {
      v8 one = load(score + c);
      most = one > most ? one : most;
    }
    float top = -INFINITY;
    for (int i = 0; i < 8; i++) top = most[i] > top ? most[i] : top;
    for (int64_t c = 0; c < length; c += 8) {
      v8 weight = exp8(load(score + c) - top);
      store(score + c, weight);
      sum += weight;
    }
    divide[g] = 1.0f / total(sum);
  }
  for (int64_t c = begin; c < count; c += SOME) {
    const float* value[SOME];
    const int64_t some = count - c < SOME ? count - c : SOME;
    for (int64_t i = 0; i < some; i++)
      value[i] = cell(pool.values, column(at, m, c + i), head, pool.heads, wide);
    for (int64_t g = 0; g < group; g++) {
      const float* weight = &scores[g * length + c - first];
      int64_t d = 0;
      for (; d + 64 <= wide; d += 64) weigh<8>(value, weight, some, d, out + g * wide);
      for (; d + 8 <= wide; d += 8) weigh<1>(value, weight, some, d, out + g * wide);
      for (; d < wide; d++)
        for (int64_t i = 0; i < some; i++) out[g * wide + d] += weight[i] * value[i][d];
    }
  }
  for (int64_t g = 0; g < group; g++)
    for (int64_t d = 0; d < wide; d++) out[g * wide + d] *= divide[g];
}

// Inside a parallel region. query: node m's head h at m * row + h * step; out: [nodes][heads * value_size].
static void attend_all(const Paths& at, const Pool& pool, int64_t heads, const float* query, int64_t row, int64_t step,
                       float* out, float scale, float cap, int64_t window, int64_t threads) {
  const int64_t whole = heads / pool.heads, group = at.nodes * pool.heads >= 4 * threads ? whole : 1;
  const int64_t parts = heads / group;
#pragma omp for collapse(2) schedule(dynamic, 1)
  for (int64_t m = 0; m < at.nodes; m++)
    for (int64_t part = 0; part < parts; part++) {
      int64_t h = part * group;
      attend_one(at, pool, m, h / whole, group, query + m * row + h * step, step,
                 out + (m * heads + h) * pool.value_size, scale, cap, window);
    }
}

// `Cache`'s law: a value that is not finite is stored as 0, and its head's key as NaN.
static void keep(const Paths& at, const Pool& pool, int64_t m, int64_t head, const float* key, const float* value) {
  const int64_t place = at.page_M[m] * PAGE + at.offset_M[m];
  float* k = (float*)cell(pool.keys, place, head, pool.heads, pool.size);
  float* v = (float*)cell(pool.values, place, head, pool.heads, pool.value_size);
  float spoiled = 0;
  for (int64_t d = 0; d < pool.value_size; d++) spoiled += value[d] * 0.0f;
  if (spoiled == 0.0f) {
    std::memcpy(k, key, pool.size * sizeof(float));
    std::memcpy(v, value, pool.value_size * sizeof(float));
    return;
  }
  for (int64_t d = 0; d < pool.size; d++) k[d] = NAN;
  for (int64_t d = 0; d < pool.value_size; d++) v[d] = value[d] * 0.0f == 0.0f ? value[d] : 0.0f;
}

// ------------------------------------------------------------------ the draw
// Of one row the tokens that can win (randomness.py has the formula): those whose logit is at least `low` or whose noise
// word is below `loud`, ids ascending; -inf and NaN cannot. The words are integers: the same as numpy makes.
static int32_t contend(const float* x, int64_t size, float low, const uint32_t* table, uint64_t key, uint32_t loud,
                       int32_t* ids, uint32_t* words) {
  const uint32_t first = (uint32_t)key, second = (uint32_t)(key >> 32);
  int32_t found = 0;
  for (int64_t base = 0; base < size; base += 64) {
    const int64_t count = size - base < 64 ? size - base : 64;
    uint32_t word[64];
    uint8_t hit[64] = {};
    for (int64_t j = 0; j < count; j++) {
      uint32_t w = table[base + j] ^ first;
      w = (w ^ (w >> 16)) * 0x7FEB352Du;
      w = (w ^ (w >> 15) ^ second) * 0x846CA68Bu;
      word[j] = (w ^ (w >> 16)) & 0x7FFFFFFFu;
    }
    for (int64_t j = 0; j < count; j++) hit[j] = (x[base + j] >= low) | (word[j] < loud);
    for (int64_t j = 0; j < 64; j += 8) {
      uint64_t eight;
      std::memcpy(&eight, hit + j, 8);
      if (!eight) continue;
      for (int64_t i = j; i < j + 8; i++)
        if (hit[i] && x[base + i] > -INFINITY) ids[found] = (int32_t)(base + i), words[found++] = word[i];
    }
  }
  return found;
}

// ------------------------------------------------------------------ a layer of the Llama form
struct Layer {
  Weight qkv, out, gate_up, down;
  const float *before, *after, *query, *key;  // weights of norms; the last two may be null
  int64_t heads, window;
  float eps, scale;
};

extern "C" {

void raydecode_dense(const Weight* w, const float* x, int64_t count, float* y, int64_t threads) {
#pragma omp parallel num_threads(threads)
  dense(*w, x, w->in, count, y, w->out, nullptr, threads);
}

void raydecode_attend(const Paths* at, const Pool* pool, int64_t heads, const float* query, int64_t row, int64_t step,
                      float* out, float scale, float cap, int64_t window, int64_t threads) {
#pragma omp parallel num_threads(threads)
  attend_all(*at, *pool, heads, query, row, step, out, scale, cap, window, threads);
}

// x, ids, words: [rows][size]; low, keys, found: [rows].
void raydecode_contend(const float* x, int64_t rows, int64_t size, const float* low, const uint32_t* table,
                       const uint64_t* keys, uint32_t loud, int32_t* ids, uint32_t* words, int32_t* found,
                       int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t r = 0; r < rows; r++)
    found[r] = contend(x + r * size, size, low[r], table, keys[r], loud, ids + r * size, words + r * size);
}

// x, y: [nodes][width]; cos, sin: [nodes][size]; scratch: nodes * raydecode_scratch floats.
int64_t raydecode_scratch(const Layer* one) {
  return 2 * one->qkv.in + one->qkv.out + one->out.in + one->gate_up.out + one->down.in;
}

void raydecode_layer(const Layer* one, const Paths* at, const Pool* pool, const float* x, const float* cos,
                     const float* sin, float* y, float* scratch, int64_t threads) {
  const int64_t M = at->nodes, E = one->qkv.in, Q = one->qkv.out, A = one->out.in, D = pool->size;
  const int64_t I = one->down.in, H = one->heads, K = pool->heads;
  float *normed = scratch, *qkv = normed + M * E, *mixed = qkv + M * Q, *middle = mixed + M * A;
  float *both = middle + M * E, *inner = both + M * 2 * I;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t m = 0; m < M; m++) norm(x + m * E, one->before, E, one->eps, normed + m * E);
    dense(one->qkv, normed, E, M, qkv, Q, nullptr, threads);
#pragma omp for schedule(static)
    for (int64_t m = 0; m < M; m++)
      for (int64_t h = 0; h < H + K; h++) {
        float *head = qkv + m * Q + h * D, row[D];
        const float* scale = h < H ? one->query : one->key;
        if (scale) norm(head, scale, D, one->eps, row); else std::memcpy(row, head, D * sizeof(float));
        turn(row, cos + m * D, sin + m * D, D, head);
        if (h >= H) keep(*at, *pool, m, h - H, head, head + K * D);
      }
    attend_all(*at, *pool, H, qkv, Q, D, mixed, one->scale, 0.0f, one->window, threads);
    dense(one->out, mixed, A, M, middle, E, x, threads);
#pragma omp for schedule(static)
    for (int64_t m = 0; m < M; m++) norm(middle + m * E, one->after, E, one->eps, normed + m * E);
    dense(one->gate_up, normed, E, M, both, 2 * I, nullptr, threads);
#pragma omp for schedule(static)
    for (int64_t m = 0; m < M; m++) gate(both + m * 2 * I, I, inner + m * I);
    dense(one->down, inner, I, M, y, E, middle, threads);
  }
}
}
