#define _GNU_SOURCE
#include "base/xts.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/siterig.h"
#include "base/xts_vector.h"

enum { KEPT = 16, LINES = SR_XTS_UNIT_BYTES / SR_XTS_LINE_BYTES };

/* Contexts that are not in use. To make one takes as long as to encrypt a block, because of its key schedule. */
struct contexts {
	EVP_CIPHER_CTX *kept[KEPT];
	int count;
};

struct sr_xts {
	struct sr_round_keys round_keys; /* only if is_vector */
	int is_vector;                   /* atomic */
	int users;                       /* atomic */
	pthread_mutex_t lock;
	struct contexts contexts[2]; /* for decryption, for encryption */
	uint8_t key[SR_XTS_KEY_BYTES];
};

static EVP_CIPHER_CTX *new_context(const struct sr_xts *xts, int encrypts)
{
	EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
	if (context && EVP_CipherInit_ex(context, EVP_aes_256_xts(), NULL, xts->key, NULL, encrypts) != 1) {
		EVP_CIPHER_CTX_free(context);
		context = NULL;
	}
	return context;
}

static EVP_CIPHER_CTX *take_context(struct sr_xts *xts, int encrypts)
{
	struct contexts *own = &xts->contexts[encrypts];
	EVP_CIPHER_CTX *context = NULL;

	pthread_mutex_lock(&xts->lock);
	if (own->count)
		context = own->kept[--own->count];
	pthread_mutex_unlock(&xts->lock);
	return context ? context : new_context(xts, encrypts);
}

static void return_context(struct sr_xts *xts, int encrypts, EVP_CIPHER_CTX *context)
{
	struct contexts *own = &xts->contexts[encrypts];

	pthread_mutex_lock(&xts->lock);
	if (own->count < KEPT) {
		own->kept[own->count++] = context;
		context = NULL;
	}
	pthread_mutex_unlock(&xts->lock);
	EVP_CIPHER_CTX_free(context);
}

/* Encrypt or decrypt the first `bytes` of a unit; `into` may be `data`. */
static int crypt_unit(EVP_CIPHER_CTX *context, uint8_t *into, const uint8_t *data, uint64_t bytes, uint64_t block)
{
	uint8_t tweak[16] = {0};
	int done;

	for (int i = 0; i < 8; i++)
		tweak[i] = (uint8_t)(block >> 8 * i);
	if (EVP_CipherInit_ex(context, NULL, NULL, NULL, tweak, -1) != 1 ||
	    EVP_CipherUpdate(context, into, &done, data, (int)bytes) != 1 || done != (int)bytes)
		return -EIO;
	return 0;
}

/* Encrypt and decrypt one unit in both ways. */
static int compare_ways(struct sr_xts *xts)
{
	uint8_t plain[SR_XTS_UNIT_BYTES], by_library[SR_XTS_UNIT_BYTES], by_vector[SR_XTS_UNIT_BYTES];
	const uint64_t block = 0x0123456789abcdef;
	EVP_CIPHER_CTX *context = take_context(xts, 1);

	if (!context)
		return -EIO;
	for (size_t i = 0; i < sizeof(plain); i++)
		plain[i] = (uint8_t)(i * 31 + i / 256 + 1);
	int rc = crypt_unit(context, by_library, plain, sizeof(plain), block);
	return_context(xts, 1, context);
	sr_xts_vector(&xts->round_keys, by_vector, plain, block, 0, LINES, 1);
	if (rc || memcmp(by_library, by_vector, sizeof(plain)) != 0)
		return -EIO;
	sr_xts_vector(&xts->round_keys, by_vector, by_vector, block, 0, LINES, 0);
	return memcmp(by_vector, plain, sizeof(plain)) == 0 ? 0 : -EIO;
}

int sr_xts_use_vector(struct sr_xts *xts, int vector)
{
	int rc = 0;

	if (vector && !sr_xts_has_vector())
		return -EOPNOTSUPP;
	if (vector) {
		sr_xts_expand(&xts->round_keys, xts->key);
		rc = compare_ways(xts);
	}
	__atomic_store_n(&xts->is_vector, vector && rc == 0, __ATOMIC_RELEASE);
	return rc;
}

struct sr_xts *sr_xts_new(const uint8_t key[SR_XTS_KEY_BYTES])
{
	struct sr_xts *xts = calloc(1, sizeof(*xts));
	if (!xts)
		return NULL;
	xts->users = 1;
	memcpy(xts->key, key, sizeof(xts->key));
	pthread_mutex_init(&xts->lock, NULL);
	EVP_CIPHER_CTX *context = new_context(xts, 1);
	if (!context) {
		sr_xts_put(xts);
		errno = EINVAL;
		return NULL;
	}
	return_context(xts, 1, context);
	(void)sr_xts_use_vector(xts, 1); /* otherwise libcrypto's way is used */
	return xts;
}

struct sr_xts *sr_xts_share(struct sr_xts *xts)
{
	__atomic_add_fetch(&xts->users, 1, __ATOMIC_RELAXED);
	return xts;
}

void sr_xts_put(struct sr_xts *xts)
{
	if (!xts || __atomic_sub_fetch(&xts->users, 1, __ATOMIC_ACQ_REL))
		return;
	for (int encrypts = 0; encrypts < 2; encrypts++)
		while (xts->contexts[encrypts].count)
			EVP_CIPHER_CTX_free(xts->contexts[encrypts].kept[--xts->contexts[encrypts].count]);
	pthread_mutex_destroy(&xts->lock);
	OPENSSL_cleanse(xts->key, sizeof(xts->key));
	OPENSSL_cleanse(&xts->round_keys, sizeof(xts->round_keys));
	free(xts);
}

/* Return the number of the first line of zeros from line `i` on, or `lines`. */
static uint64_t find_zero_line(const uint8_t *data, uint64_t i, uint64_t lines)
{
	for (; i < lines; i++) {
		uint64_t words[2];
		memcpy(words, data + i * SR_XTS_LINE_BYTES, sizeof(words));
		if ((words[0] | words[1]) == 0)
			break;
	}
	return i;
}

static int decrypt_unit(EVP_CIPHER_CTX *context, uint8_t *data, uint64_t bytes, uint64_t block)
{
	const uint64_t lines = bytes / SR_XTS_LINE_BYTES, first = find_zero_line(data, 0, lines);
	uint8_t zero[LINES] = {0};

	if (first == lines)
		return crypt_unit(context, data, data, bytes, block);
	for (uint64_t i = first; i < lines; i = find_zero_line(data, i + 1, lines))
		zero[i] = 1;
	int rc = crypt_unit(context, data, data, bytes, block);
	for (uint64_t i = first; i < lines; i++)
		if (zero[i])
			memset(data + i * SR_XTS_LINE_BYTES, 0, SR_XTS_LINE_BYTES);
	return rc;
}

/* Encrypt or decrypt bytes that begin `before` bytes after the start of their unit. */
static int crypt_inner(EVP_CIPHER_CTX *context, uint8_t *into, const uint8_t *data, uint64_t bytes, uint64_t before,
		       uint64_t block, int encrypts)
{
	uint8_t unit[SR_XTS_UNIT_BYTES];

	memset(unit, 0, before);
	memcpy(unit + before, data, bytes);
	int rc = encrypts ? crypt_unit(context, unit, unit, before + bytes, block)
			  : decrypt_unit(context, unit, before + bytes, block);
	memcpy(into, unit + before, bytes);
	return rc;
}

/* Encrypt or decrypt a part of a unit, which begins `before` bytes after the start of the unit. Without a context the
 * vector instructions are used. */
static int crypt_part(struct sr_xts *xts, EVP_CIPHER_CTX *context, uint8_t *into, const uint8_t *data, uint64_t bytes,
		      uint64_t before, uint64_t block, int encrypts)
{
	if (!context) {
		sr_xts_vector(&xts->round_keys, into, data, block, (unsigned)(before / SR_XTS_LINE_BYTES),
			      (unsigned)(bytes / SR_XTS_LINE_BYTES), encrypts);
		return 0;
	}
	if (!encrypts && sr_is_zero(data, bytes))
		return 0;
	if (before)
		return crypt_inner(context, into, data, bytes, before, block, encrypts);
	return encrypts ? crypt_unit(context, into, data, bytes, block) : decrypt_unit(context, into, bytes, block);
}

/* `into` is `data` to decrypt, and may be to encrypt. */
static int crypt_range(struct sr_xts *xts, uint8_t *into, const uint8_t *data, uint64_t bytes, uint64_t offset, int encrypts)
{
	const int is_vector = __atomic_load_n(&xts->is_vector, __ATOMIC_ACQUIRE);
	EVP_CIPHER_CTX *context = NULL;
	int rc = 0;

	if (bytes == 0)
		return 0;
	if ((bytes | offset) % SR_XTS_LINE_BYTES)
		return -EINVAL;
	if (!is_vector && !(context = take_context(xts, encrypts)))
		return -EIO;
	while (bytes > 0 && rc == 0) {
		uint64_t before = offset % SR_XTS_UNIT_BYTES, block = offset / SR_XTS_UNIT_BYTES;
		uint64_t part = SR_XTS_UNIT_BYTES - before < bytes ? SR_XTS_UNIT_BYTES - before : bytes;

		if (encrypts && part == SR_XTS_UNIT_BYTES && sr_is_zero(data, part)) { /* zeros stay zeros */
			if (into != data)
				memset(into, 0, part);
		} else {
			rc = crypt_part(xts, context, into, data, part, before, block, encrypts);
		}
		into += part;
		data += part;
		offset += part;
		bytes -= part;
	}
	if (context)
		return_context(xts, encrypts, context);
	return rc;
}

int sr_xts_encrypt(struct sr_xts *xts, void *data, uint64_t bytes, uint64_t offset)
{
	return crypt_range(xts, data, data, bytes, offset, 1);
}

int sr_xts_encrypt_into(struct sr_xts *xts, void *into, const void *data, uint64_t bytes, uint64_t offset)
{
	return crypt_range(xts, into, data, bytes, offset, 1);
}

int sr_xts_decrypt(struct sr_xts *xts, void *data, uint64_t bytes, uint64_t offset)
{
	return crypt_range(xts, data, data, bytes, offset, 0);
}
