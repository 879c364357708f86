/* Keyed tags of disk chunks.
 *
 * Both sides of a comparison are tagged at one time under a new random key. So a tag needs to be almost universal, not
 * collision free: AES-256-GMAC (NIST SP 800-38D), which libcrypto computes at memory-like speed. The nonce is the
 * chunk's index.
 *
 * The message is: the blocks of the chunk that are not zeros, in order; then a map with one bit for each block, the
 * lowest bit first, 1 for a block that is in the message. The length of the map follows from the length of the chunk,
 * so different chunks have different messages, and the work depends on the data, not on the holes between them. The tag
 * of a chunk of zeros is 16 zero bytes, without a key.
 */
#define _GNU_SOURCE
#include "base/hasher.h"

#include <string.h>

int sr_is_zero(const void *data, size_t bytes)
{
	const uint8_t *p = data;
	size_t head = bytes < 16 ? bytes : 16;
	for (size_t i = 0; i < head; i++)
		if (p[i])
			return 0;
	/* the first 16 bytes are zero: all are zero if each byte equals the byte 16 before it */
	return bytes <= 16 || memcmp(p, p + 16, bytes - 16) == 0;
}

int sr_hasher_init(struct sr_hasher *hasher, const uint8_t key[SR_KEY_BYTES], size_t chunk_bytes)
{
	size_t blocks = (chunk_bytes + SR_HASH_BLOCK_BYTES - 1) / SR_HASH_BLOCK_BYTES;

	hasher->ctx = EVP_CIPHER_CTX_new();
	hasher->map_bytes = (blocks + 7) / 8;
	return hasher->ctx && EVP_EncryptInit_ex(hasher->ctx, EVP_aes_256_gcm(), NULL, key, NULL) == 1 ? 0 : -1;
}

void sr_hasher_end(struct sr_hasher *hasher)
{
	EVP_CIPHER_CTX_free(hasher->ctx);
	hasher->ctx = NULL;
}

int sr_hasher_begin(struct sr_hasher *hasher, uint64_t index)
{
	uint8_t nonce[12] = {0};

	memcpy(nonce, &index, sizeof(index));
	memset(hasher->map, 0, hasher->map_bytes);
	hasher->is_zero = 1;
	return EVP_EncryptInit_ex(hasher->ctx, NULL, NULL, NULL, nonce) == 1 ? 0 : -1;
}

static int update(struct sr_hasher *hasher, const uint8_t *data, size_t bytes)
{
	int n;
	return bytes == 0 || EVP_EncryptUpdate(hasher->ctx, NULL, &n, data, (int)bytes) == 1 ? 0 : -1;
}

int sr_hasher_add(struct sr_hasher *hasher, size_t block, const uint8_t *data, size_t bytes)
{
	static const uint8_t zeros[SR_HASH_BLOCK_BYTES];
	size_t from = 0, at = 0; /* data[from .. at] is the run of blocks that are not zeros */

	while (at < bytes) {
		size_t step = bytes - at < SR_HASH_BLOCK_BYTES ? bytes - at : SR_HASH_BLOCK_BYTES;
		if (sr_is_zero(data + at, step)) {
			if (update(hasher, data + from, at - from))
				return -1;
			from = at + step;
		} else {
			size_t number = block + at / SR_HASH_BLOCK_BYTES;
			hasher->map[number / 8] |= (uint8_t)(1 << number % 8);
			hasher->is_zero = 0;
		}
		at += step;
	}
	if (update(hasher, data + from, at - from))
		return -1;
	size_t rest = bytes % SR_HASH_BLOCK_BYTES;
	return rest && from < at ? update(hasher, zeros, SR_HASH_BLOCK_BYTES - rest) : 0;
}

int sr_hasher_finish(struct sr_hasher *hasher, uint8_t tag[SR_TAG_BYTES])
{
	int n;

	if (hasher->is_zero) {
		memset(tag, 0, SR_TAG_BYTES);
		return 0;
	}
	if (update(hasher, hasher->map, hasher->map_bytes) || EVP_EncryptFinal_ex(hasher->ctx, tag, &n) != 1)
		return -1;
	return EVP_CIPHER_CTX_ctrl(hasher->ctx, EVP_CTRL_GCM_GET_TAG, SR_TAG_BYTES, tag) == 1 ? 0 : -1;
}

int sr_chunk_tag(const uint8_t key[SR_KEY_BYTES], uint64_t index, const void *data, size_t bytes,
                 uint8_t tag[SR_TAG_BYTES])
{
	struct sr_hasher hasher;
	int rc = bytes > SR_HASH_CHUNK_BYTES_MAX ? -1 : 0;

	if (rc)
		return rc;
	rc = sr_hasher_init(&hasher, key, bytes) || sr_hasher_begin(&hasher, index) ||
		     sr_hasher_add(&hasher, 0, data, bytes) || sr_hasher_finish(&hasher, tag)
		     ? -1
		     : 0;
	sr_hasher_end(&hasher);
	return rc;
}
