/* siterig's C core: checksums and chunk hashing.
 *
 * The functions have no global state; any thread may call them.
 */
#ifndef SITERIG_H
#define SITERIG_H

#include <stddef.h>
#include <stdint.h>

enum { SR_KEY_BYTES = 32, SR_TAG_BYTES = 16 };

/* Return the CRC32C (Castagnoli, RFC 3720 appendix B.4) of `data`, continuing from `crc` (0 to start). */
uint32_t sr_crc32c(uint32_t crc, const void *data, size_t bytes);

/* Return 1 if all bytes are zero, otherwise 0. */
int sr_is_zero(const void *data, size_t bytes);

/* Compute the keyed tag of one chunk of at most 1 MiB (hasher.c), with `index` as the nonce; 16 zero bytes for a chunk of
 * zeros. Returns 0, or -1 if libcrypto failed. */
int sr_chunk_tag(const uint8_t key[SR_KEY_BYTES], uint64_t index, const void *data, size_t bytes,
                 uint8_t tag[SR_TAG_BYTES]);

/* Return the range to the file system; it reads as zeros, and the file's size stays. Returns 0, or -errno. */
int sr_punch_hole(int fd, int64_t offset, int64_t bytes);

/* prctl(PR_SET_IO_FLUSHER): memory reclaim must never wait for the process that serves the disks. Returns 0, or
 * -errno. */
int sr_set_io_flusher(void);

/* prctl(PR_SET_PDEATHSIG): signal `number` comes when the thread that started this process ends. Returns 0, or -errno. */
int sr_set_parent_death_signal(int number);

/* malloc_trim(3), if the arenas have `free_bytes_min` free bytes or more. Returns 1 if memory was returned, or 0; does
 * nothing without glibc. */
int sr_trim_memory(size_t free_bytes_min);

/* mallopt(3): blocks of `bytes_min` or more go back to the kernel when they are freed, an arena keeps at most
 * `kept_bytes_max` free bytes at its end, and threads share `arenas_max` arenas. Returns 0, or -EINVAL; does nothing
 * without glibc. */
int sr_return_freed_memory(size_t bytes_min, size_t kept_bytes_max, int arenas_max);

/* prctl(PR_SET_DUMPABLE, 0). Returns 0, or -errno. */
int sr_forbid_memory_access(void);

/* Replace what /proc/self/cmdline shows by `words`, each with a NUL at its end, cut at the former length. Returns 0, or
 * -errno. */
int sr_set_command_line(const char *words, size_t bytes);

/* mount(2) without set-uid programs and devices.  Returns 0, or -errno. */
int sr_mount_fuse(const char *source, const char *target, const char *type, const char *options,
		  int read_only);

/* umount2(2); `lazily` hides the mount at once and ends it with its last user. Returns 0, or -errno. */
int sr_unmount(const char *target, int lazily);

#endif
