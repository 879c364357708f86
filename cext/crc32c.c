/* CRC32C with the processor's instruction where there is one, else slicing by 8. */
#include "siterig.h"

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
		word ^= c; /* little endian only, as is the rest of the on-disk format */
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
__attribute__((target("sse4.2"))) static uint32_t crc_sse42(uint32_t c, const uint8_t *p, size_t n)
{
	uint64_t wide = c;
	while (n >= 8) {
		uint64_t word;
		memcpy(&word, p, 8);
		wide = __builtin_ia32_crc32di(wide, word);
		p += 8;
		n -= 8;
	}
	c = (uint32_t)wide;
	while (n--)
		c = __builtin_ia32_crc32qi(c, *p++);
	return c;
}
#endif

uint32_t sr_crc32c(uint32_t crc, const void *data, size_t bytes)
{
	uint32_t c = ~crc;
#if defined(__x86_64__)
	if (__builtin_cpu_supports("sse4.2"))
		return ~crc_sse42(c, data, bytes);
#endif
	return ~crc_portable(c, data, bytes);
}
