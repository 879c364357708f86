/* AES-256-XTS with the instructions VAES and VPCLMULQDQ: two lines in a register, sixteen at once. libcrypto 3.0 has AES-XTS
 * for one line in a register only, which takes twice as long. base/xts.c chooses, and compares both for each key.
 */
#ifndef SITERIG_XTS_VECTOR_H
#define SITERIG_XTS_VECTOR_H

#include <stdint.h>

enum { SR_AES_256_ROUND_KEYS = 15 };

/* The round keys of both halves of a key; aligned to 16 bytes. */
struct sr_round_keys {
	_Alignas(16) uint8_t encrypt[SR_AES_256_ROUND_KEYS][16];
	_Alignas(16) uint8_t decrypt[SR_AES_256_ROUND_KEYS][16];
	_Alignas(16) uint8_t tweak[SR_AES_256_ROUND_KEYS][16];
};

/* Return 1 if the processor has the instructions; otherwise none of the other functions may be called. */
int sr_xts_has_vector(void);

void sr_xts_expand(struct sr_round_keys *keys, const uint8_t key[64]);

/* Encrypt or decrypt `lines` lines of block `block`, from line `first` on; they end within the block. `into` may be `data`. A
 * line of zeros is decrypted to zeros. */
void sr_xts_vector(const struct sr_round_keys *keys, uint8_t *into, const uint8_t *data, uint64_t block, unsigned first,
		   unsigned lines, int encrypts);

#endif
