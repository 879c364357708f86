#include "base/xts_vector.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>

#define VECTOR __attribute__((target("avx2,aes,pclmul,vaes,vpclmulqdq")))
#define INLINE VECTOR inline __attribute__((always_inline))

enum { LAST = SR_AES_256_ROUND_KEYS - 1, WIDE = 8, WIDE_LINES = 2 * WIDE };

int sr_xts_has_vector(void)
{
	return __builtin_cpu_supports("vaes") && __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx2") &&
	       __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
}

/* --- round keys (FIPS 197, 5.2) ----------------------------------------------------------------------------------- */

/* Each word becomes the sum of itself and of all words before it, and of `assist`. */
static INLINE __m128i next_words(__m128i key, __m128i assist)
{
	__m128i shifted = key;

	for (int i = 0; i < 3; i++) {
		shifted = _mm_slli_si128(shifted, 4);
		key = _mm_xor_si128(key, shifted);
	}
	return _mm_xor_si128(key, assist);
}

#define NEXT_EVEN(i, round_constant)                                                                                           \
	k[i] = next_words(k[(i)-2], _mm_shuffle_epi32(_mm_aeskeygenassist_si128(k[(i)-1], round_constant), 0xff))
#define NEXT_ODD(i) k[i] = next_words(k[(i)-2], _mm_shuffle_epi32(_mm_aeskeygenassist_si128(k[(i)-1], 0), 0xaa))

static VECTOR void expand(uint8_t (*into)[16], const uint8_t key[32])
{
	__m128i k[SR_AES_256_ROUND_KEYS];

	k[0] = _mm_loadu_si128((const __m128i *)(const void *)key);
	k[1] = _mm_loadu_si128((const __m128i *)(const void *)(key + 16));
	NEXT_EVEN(2, 0x01);
	NEXT_ODD(3);
	NEXT_EVEN(4, 0x02);
	NEXT_ODD(5);
	NEXT_EVEN(6, 0x04);
	NEXT_ODD(7);
	NEXT_EVEN(8, 0x08);
	NEXT_ODD(9);
	NEXT_EVEN(10, 0x10);
	NEXT_ODD(11);
	NEXT_EVEN(12, 0x20);
	NEXT_ODD(13);
	NEXT_EVEN(14, 0x40);
	for (int i = 0; i <= LAST; i++)
		_mm_store_si128((__m128i *)(void *)into[i], k[i]);
}

static INLINE __m128i round_key(const uint8_t (*keys)[16], int i)
{
	return _mm_load_si128((const __m128i *)(const void *)keys[i]);
}

VECTOR void sr_xts_expand(struct sr_round_keys *keys, const uint8_t key[64])
{
	expand(keys->encrypt, key);
	expand(keys->tweak, key + 32);
	for (int i = 0; i <= LAST; i++) { /* of the equivalent inverse cipher (FIPS 197, 5.3.5) */
		__m128i from = round_key(keys->encrypt, LAST - i);
		_mm_store_si128((__m128i *)(void *)keys->decrypt[i], i == 0 || i == LAST ? from : _mm_aesimc_si128(from));
	}
}

/* --- tweaks ------------------------------------------------------------------------------------------------------- */

/* A tweak as a number; it is multiplied in GF(2^128) with the polynomial x^128 + x^7 + x^2 + x + 1. */
typedef unsigned __int128 tweak_t;

static tweak_t doubled(tweak_t tweak)
{
	return tweak << 1 ^ (tweak_t)((uint64_t)(tweak >> 127) * 0x87);
}

static VECTOR tweak_t first_tweak(const struct sr_round_keys *keys, uint64_t block)
{
	__m128i x = _mm_xor_si128(_mm_set_epi64x(0, (long long)block), round_key(keys->tweak, 0));
	tweak_t tweak;

	for (int i = 1; i < LAST; i++)
		x = _mm_aesenc_si128(x, round_key(keys->tweak, i));
	x = _mm_aesenclast_si128(x, round_key(keys->tweak, LAST));
	memcpy(&tweak, &x, sizeof(tweak));
	return tweak;
}

/* The tweaks of the lines that come 16 lines later: a multiplication by x^16. */
static INLINE __m256i later_tweaks(__m256i tweaks)
{
	const __m256i polynomial = _mm256_set_epi64x(0, 0x87, 0, 0x87);
	__m256i carried = _mm256_clmulepi64_epi128(_mm256_srli_si256(tweaks, 14), polynomial, 0);

	return _mm256_xor_si256(_mm256_slli_si256(tweaks, 2), carried);
}

/* --- lines -------------------------------------------------------------------------------------------------------- */

/* All bits of each line that has one that is not zero. */
static INLINE __m256i lines_with_data(__m256i lines)
{
	__m256i words = _mm256_cmpeq_epi64(lines, _mm256_setzero_si256());
	__m256i zero = _mm256_and_si256(words, _mm256_shuffle_epi32(words, 0x4e));

	return _mm256_xor_si256(zero, _mm256_set1_epi32(-1));
}

static INLINE void crypt_wide(const uint8_t (*keys)[16], uint8_t *into, const uint8_t *data, __m256i tweaks[WIDE], int encrypts)
{
	__m256i x[WIDE], key = _mm256_broadcastsi128_si256(round_key(keys, 0));

#pragma GCC unroll 8
	for (int j = 0; j < WIDE; j++) {
		x[j] = _mm256_loadu_si256((const __m256i *)(const void *)(data + 32 * j));
		x[j] = _mm256_xor_si256(_mm256_xor_si256(x[j], tweaks[j]), key);
	}
#pragma GCC unroll 16
	for (int i = 1; i < LAST; i++) {
		key = _mm256_broadcastsi128_si256(round_key(keys, i));
#pragma GCC unroll 8
		for (int j = 0; j < WIDE; j++)
			x[j] = encrypts ? _mm256_aesenc_epi128(x[j], key) : _mm256_aesdec_epi128(x[j], key);
	}
	key = _mm256_broadcastsi128_si256(round_key(keys, LAST));
#pragma GCC unroll 8
	for (int j = 0; j < WIDE; j++) {
		x[j] = encrypts ? _mm256_aesenclast_epi128(x[j], key) : _mm256_aesdeclast_epi128(x[j], key);
		x[j] = _mm256_xor_si256(x[j], tweaks[j]);
		if (!encrypts) {
			__m256i before = _mm256_loadu_si256((const __m256i *)(const void *)(data + 32 * j));
			x[j] = _mm256_and_si256(x[j], lines_with_data(before));
		}
		_mm256_storeu_si256((__m256i *)(void *)(into + 32 * j), x[j]);
		tweaks[j] = later_tweaks(tweaks[j]);
	}
}

static INLINE void crypt_line(const uint8_t (*keys)[16], uint8_t *into, const uint8_t *data, tweak_t number, int encrypts)
{
	__m128i tweak, line = _mm_loadu_si128((const __m128i *)(const void *)data);

	memcpy(&tweak, &number, sizeof(tweak));
	__m128i x = _mm_xor_si128(_mm_xor_si128(line, tweak), round_key(keys, 0));
	for (int i = 1; i < LAST; i++)
		x = encrypts ? _mm_aesenc_si128(x, round_key(keys, i)) : _mm_aesdec_si128(x, round_key(keys, i));
	x = encrypts ? _mm_aesenclast_si128(x, round_key(keys, LAST)) : _mm_aesdeclast_si128(x, round_key(keys, LAST));
	x = _mm_xor_si128(x, tweak);
	if (!encrypts && _mm_testz_si128(line, line))
		x = _mm_setzero_si128();
	_mm_storeu_si128((__m128i *)(void *)into, x);
}

static INLINE void crypt_lines(const uint8_t (*keys)[16], uint8_t *into, const uint8_t *data, tweak_t tweak, unsigned lines, int encrypts)
{
	if (lines >= WIDE_LINES) {
		__m256i tweaks[WIDE];

		for (int j = 0; j < WIDE; j++) {
			tweak_t pair[2] = {tweak, doubled(tweak)};
			memcpy(&tweaks[j], pair, sizeof(pair));
			tweak = doubled(pair[1]);
		}
		for (; lines >= WIDE_LINES; lines -= WIDE_LINES, data += 16 * WIDE_LINES, into += 16 * WIDE_LINES)
			crypt_wide(keys, into, data, tweaks, encrypts);
		memcpy(&tweak, &tweaks[0], sizeof(tweak));
	}
	for (; lines > 0; lines--, data += 16, into += 16, tweak = doubled(tweak))
		crypt_line(keys, into, data, tweak, encrypts);
}

VECTOR void sr_xts_vector(const struct sr_round_keys *keys, uint8_t *into, const uint8_t *data, uint64_t block, unsigned first,
			  unsigned lines, int encrypts)
{
	tweak_t tweak = first_tweak(keys, block);

	while (first-- > 0)
		tweak = doubled(tweak);
	if (encrypts)
		crypt_lines(keys->encrypt, into, data, tweak, lines, 1);
	else
		crypt_lines(keys->decrypt, into, data, tweak, lines, 0);
}

#else

int sr_xts_has_vector(void)
{
	return 0;
}

void sr_xts_expand(struct sr_round_keys *keys, const uint8_t key[64])
{
	(void)keys;
	(void)key;
	abort();
}

void sr_xts_vector(const struct sr_round_keys *keys, uint8_t *into, const uint8_t *data, uint64_t block, unsigned first,
		   unsigned lines, int encrypts)
{
	(void)keys;
	(void)into;
	(void)data;
	(void)block;
	(void)first;
	(void)lines;
	(void)encrypts;
	abort();
}
#endif
