/* siterig's C core: checksums and chunk hashing.
 *
 * Every function is free of global state and may be called from any thread.
 */
#ifndef SITERIG_H
#define SITERIG_H

#include <stddef.h>
#include <stdint.h>

enum { SR_KEY_BYTES = 32, SR_TAG_BYTES = 16 };

/* CRC32C (Castagnoli, RFC 3720 appendix B.4) of `data`, continuing from `crc` (0 to start). */
uint32_t sr_crc32c(uint32_t crc, const void *data, size_t bytes);

/* 1 if all bytes are zero, else 0. */
int sr_is_zero(const void *data, size_t bytes);

/* Keyed tag of one chunk: AES-256-GMAC with `index` as the nonce; 16 zero bytes for an all-zero chunk.
 * Returns 0, or -1 if libcrypto failed. */
int sr_chunk_tag(const uint8_t key[SR_KEY_BYTES], uint64_t index, const void *data, size_t bytes,
                 uint8_t tag[SR_TAG_BYTES]);

/* Tags of `count` chunks of file `fd`, from chunk `first`; `tags` has room for count * SR_TAG_BYTES.
 * Holes are not read.  What lies past the end of the file counts as zeros.
 * Returns 0, or -errno (-EIO if libcrypto failed). */
int sr_chunk_tags_fd(int fd, const uint8_t key[SR_KEY_BYTES], size_t chunk_bytes, uint64_t first, size_t count,
                     uint8_t *tags);

/* Give the range back to the file system; it reads as zeros.  The file's size stays.  Returns 0, or -errno. */
int sr_punch_hole(int fd, int64_t offset, int64_t bytes);

/* prctl(PR_SET_IO_FLUSHER): memory reclaim must never wait for the process that serves the disks.
 * Returns 0, or -errno. */
int sr_set_io_flusher(void);

/* mount(2) without set-uid programs and devices.  Returns 0, or -errno. */
int sr_mount_fuse(const char *source, const char *target, const char *type, const char *options,
		  int read_only);

/* umount2(2).  `lazily`: out of sight at once, gone with its last user.  Returns 0, or -errno. */
int sr_unmount(const char *target, int lazily);

#endif
