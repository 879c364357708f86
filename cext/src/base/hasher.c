/* Keyed tags of disk chunks.
 *
 * A resync compares two sides at one time under a new random key. So a tag needs to be almost universal, not collision
 * free: AES-GMAC, which libcrypto computes at memory-like speed. The nonce is the chunk's index.
 */
#define _GNU_SOURCE
#include "base/siterig.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

static int tag_chunk(EVP_CIPHER_CTX *ctx, const uint8_t key[SR_KEY_BYTES], uint64_t index, const void *data,
                     size_t bytes, uint8_t tag[SR_TAG_BYTES])
{
	uint8_t nonce[12] = {0};
	int n;

	if (sr_is_zero(data, bytes)) {
		memset(tag, 0, SR_TAG_BYTES);
		return 0;
	}
	memcpy(nonce, &index, sizeof(index));
	if (EVP_EncryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, key, nonce) != 1)
		return -1;
	while (bytes > 0) {
		int step = bytes > (1 << 30) ? (1 << 30) : (int)bytes;
		if (EVP_EncryptUpdate(ctx, NULL, &n, data, step) != 1)
			return -1;
		data = (const uint8_t *)data + step;
		bytes -= (size_t)step;
	}
	if (EVP_EncryptFinal_ex(ctx, tag, &n) != 1)
		return -1;
	return EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_GET_TAG, SR_TAG_BYTES, tag) == 1 ? 0 : -1;
}

int sr_chunk_tag(const uint8_t key[SR_KEY_BYTES], uint64_t index, const void *data, size_t bytes,
                 uint8_t tag[SR_TAG_BYTES])
{
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	if (!ctx)
		return -1;
	int rc = tag_chunk(ctx, key, index, data, bytes, tag);
	EVP_CIPHER_CTX_free(ctx);
	return rc;
}

/* Fill `buf` from the file, with zeros past its end. Returns 0 or -errno. */
static int read_chunk(int fd, uint8_t *buf, size_t bytes, off_t at)
{
	size_t got = 0;
	while (got < bytes) {
		ssize_t n = pread(fd, buf + got, bytes - got, at + (off_t)got);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0) {
			memset(buf + got, 0, bytes - got);
			return 0;
		}
		got += (size_t)n;
	}
	return 0;
}

int sr_chunk_tags_fd(int fd, const uint8_t key[SR_KEY_BYTES], size_t chunk_bytes, uint64_t first, size_t count,
                     uint8_t *tags)
{
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	uint8_t *buf = malloc(chunk_bytes);
	off_t next_data = -1; /* start of the next data, as far as SEEK_DATA has found it */
	int rc = 0;

	if (!ctx || !buf) {
		rc = -ENOMEM;
		goto out;
	}
	for (size_t i = 0; i < count; i++) {
		off_t at = (off_t)((first + i) * chunk_bytes);
		if (next_data < at) {
			next_data = lseek(fd, at, SEEK_DATA);
			if (next_data < 0)
				/* ENXIO: only holes up to the end. Any other error: no support for holes, so read. */
				next_data = errno == ENXIO ? INT64_MAX : at;
		}
		if (next_data >= at + (off_t)chunk_bytes) {
			memset(tags + i * SR_TAG_BYTES, 0, SR_TAG_BYTES);
			continue;
		}
		rc = read_chunk(fd, buf, chunk_bytes, at);
		if (rc)
			goto out;
		if (tag_chunk(ctx, key, first + i, buf, chunk_bytes, tags + i * SR_TAG_BYTES)) {
			rc = -EIO;
			goto out;
		}
	}
out:
	free(buf);
	EVP_CIPHER_CTX_free(ctx);
	return rc;
}
