/* CRC32C with the processor's instruction if it has one, otherwise slicing by 8. */
#include "base/siterig.h"

#include <string.h>

#define POLY 0x82f63b78u /* reflected Castagnoli polynomial */

static uint32_t table[8][256];

__attribute__((constructor)) static void make_table(void)
{
	for (uint32_t n = 0; n < 256; n++) {
		uint32_t c = n;
		for (int k = 0; k < 8; k++)
			c = (c & 1) ? (c >> 1) ^ POLY : c >> 1;
		table[0][n] = c;
	}
	for (uint32_t n = 0; n < 256; n++)
		for (int k = 1; k < 8; k++)
			table[k][n] = (table[k - 1][n] >> 8) ^ table[0][table[k - 1][n] & 0xff];
}

static uint32_t crc_portable(uint32_t c, const uint8_t *p, size_t n)
{
	while (n >= 8) {
		uint64_t word;
		memcpy(&word, p, 8);
		word ^= c; /* little endian only, like the rest of the on-disk format */
		c = 0;
		for (int k = 0; k < 8; k++)
			c ^= table[7 - k][(word >> (8 * k)) & 0xff];
		p += 8;
		n -= 8;
	}
	while (n--)
		c = (c >> 8) ^ table[0][(c ^ *p++) & 0xff];
	return c;
}

#if defined(__x86_64__)
#include <immintrin.h>

/* The instruction takes three cycles and one can start in each cycle: three parallel lanes are three times as fast.
 * Three lanes fit a 4 KiB payload (3 * 1344 + 64). */
enum { LANE_BYTES = 1344 };
static uint64_t over_one_lane, over_two_lanes; /* x^(8 * bytes - 33) mod P: extends a CRC by that many zero bytes */

static uint64_t power_of_x(unsigned n)
{
	uint32_t c = 0x80000000u; /* x^0, reflected */
	while (n--)
		c = (c & 1) ? (c >> 1) ^ POLY : c >> 1;
	return c;
}

__attribute__((constructor)) static void make_powers(void)
{
	over_one_lane = power_of_x(8 * LANE_BYTES - 33);
	over_two_lanes = power_of_x(8 * 2 * LANE_BYTES - 33);
}

static inline uint64_t word_at(const uint8_t *p)
{
	uint64_t word;
	memcpy(&word, p, 8);
	return word;
}

/* The product of two reflected values is one bit short, and the instruction multiplies it by x^32: hence the 33. */
__attribute__((target("sse4.2,pclmul"))) static inline uint32_t carry_over(uint64_t crc, uint64_t power)
{
	__m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)crc), _mm_cvtsi64_si128((long long)power), 0);
	return (uint32_t)_mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

__attribute__((target("sse4.2,pclmul"))) static uint32_t crc_sse42(uint32_t c, const uint8_t *p, size_t n)
{
	uint64_t wide = c;
	for (; n >= 3 * LANE_BYTES; n -= 3 * LANE_BYTES, p += 3 * LANE_BYTES) {
		uint64_t second = 0, third = 0;
		for (const uint8_t *q = p; q < p + LANE_BYTES; q += 8) {
			wide = _mm_crc32_u64(wide, word_at(q));
			second = _mm_crc32_u64(second, word_at(q + LANE_BYTES));
			third = _mm_crc32_u64(third, word_at(q + 2 * LANE_BYTES));
		}
		wide = carry_over(wide, over_two_lanes) ^ carry_over(second, over_one_lane) ^ third;
	}
	for (; n >= 8; n -= 8, p += 8)
		wide = _mm_crc32_u64(wide, word_at(p));
	c = (uint32_t)wide;
	while (n--)
		c = _mm_crc32_u8(c, *p++);
	return c;
}
#endif

uint32_t sr_crc32c(uint32_t crc, const void *data, size_t bytes)
{
	uint32_t c = ~crc;
#if defined(__x86_64__)
	if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul"))
		return ~crc_sse42(c, data, bytes);
#endif
	return ~crc_portable(c, data, bytes);
}
