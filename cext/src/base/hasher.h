/* Keyed tags of disk chunks, computed from runs of blocks. */
#ifndef SITERIG_HASHER_H
#define SITERIG_HASHER_H

#include <openssl/evp.h>
#include <stddef.h>
#include <stdint.h>

#include "base/siterig.h"

enum { SR_HASH_BLOCK_BYTES = 4096, SR_HASH_CHUNK_BYTES_MAX = 1 << 20 };

/* One thread computes one tag at a time. */
struct sr_hasher {
	EVP_CIPHER_CTX *ctx;
	size_t map_bytes; /* one bit for each block of the chunk */
	int is_zero;
	uint8_t map[SR_HASH_CHUNK_BYTES_MAX / SR_HASH_BLOCK_BYTES / 8];
};

/* Each returns 0, or -1 if libcrypto failed. The caller ends every hasher, also one whose sr_hasher_init failed. */
int sr_hasher_init(struct sr_hasher *hasher, const uint8_t key[SR_KEY_BYTES], size_t chunk_bytes);
void sr_hasher_end(struct sr_hasher *hasher);

int sr_hasher_begin(struct sr_hasher *hasher, uint64_t index);
/* Add whole blocks of the chunk from block `block` on; runs are added in ascending order, and blocks that are not added are
 * zeros. Bytes of a block after the end of `data` are zeros. */
int sr_hasher_add(struct sr_hasher *hasher, size_t block, const uint8_t *data, size_t bytes);
int sr_hasher_finish(struct sr_hasher *hasher, uint8_t tag[SR_TAG_BYTES]);

#endif
