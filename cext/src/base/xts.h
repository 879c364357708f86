/* Encryption of a disk's bytes at rest: AES-256-XTS (IEEE 1619, NIST SP 800-38E) in data units of 4 KiB, whose tweak is
 * the number of the block on the disk.
 *
 * XTS encrypts each 16 bytes of a unit by themselves, so a range that begins and ends at multiples of 16 bytes of the
 * disk is encrypted to the same bytes whether it is a whole block or a part of one. Hence ranges can be cut and joined
 * at these multiples while they are encrypted.
 *
 * 16 zero bytes are zeros in both forms: they are what a hole reads as. Real bytes encrypt to 16 zero bytes with a
 * probability of 2^-128. Zeros are encrypted like all other bytes, except whole blocks, which stay zeros and can become
 * holes.
 */
#ifndef SITERIG_XTS_H
#define SITERIG_XTS_H

#include <stddef.h>
#include <stdint.h>

enum { SR_XTS_KEY_BYTES = 64, SR_XTS_UNIT_BYTES = 4096, SR_XTS_LINE_BYTES = 16 };

/* A key, with its users counted. Any number of threads may use it. */
struct sr_xts;

/* NULL: errno is the reason (EINVAL: libcrypto refuses the key, whose halves are equal). */
struct sr_xts *sr_xts_new(const uint8_t key[SR_XTS_KEY_BYTES]);
struct sr_xts *sr_xts_share(struct sr_xts *xts);
void sr_xts_put(struct sr_xts *xts);

/* Use the vector instructions of base/xts_vector.h, as a new key does if the processor has them, or not. Returns 0;
 * -EOPNOTSUPP if it does not; -EIO if they and libcrypto give different bytes. No other call may run. */
int sr_xts_use_vector(struct sr_xts *xts, int vector);

/* Encrypt or decrypt bytes of the disk from `offset` on, in place. `offset` and `bytes` are multiples of
 * SR_XTS_LINE_BYTES, or `bytes` is 0. Returns 0, -EINVAL for other ones, or -EIO if libcrypto failed; then the bytes are undefined. */
int sr_xts_encrypt(struct sr_xts *xts, void *data, uint64_t bytes, uint64_t offset);
/* The same into another buffer, which does not overlap `data`. */
int sr_xts_encrypt_into(struct sr_xts *xts, void *into, const void *data, uint64_t bytes, uint64_t offset);
int sr_xts_decrypt(struct sr_xts *xts, void *data, uint64_t bytes, uint64_t offset);

#endif
