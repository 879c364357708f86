/* Files that are mapped, and may be cut, or be on a medium that fails: an error, where a load or a store would end the process.
 */
#ifndef SITERIG_MAPPED_H
#define SITERIG_MAPPED_H

#include <stdint.h>

/* --- numbers that are read from a map --- */

/* Once, before the first load. */
void sr_mapped_prepare(void);

/* 0, or -EIO if they cannot be read.  The calling thread does not hold SIGBUS back. */
int sr_mapped_load(const uint32_t *at, int count, uint32_t *values);

/* --- files that are written through a map --- */

/* What is stored there outlives a kill.  A store to a part that the file has lost goes to memory of this process instead, and
 * so does all that is stored in the map later: it is `lost`.  So nothing that counts is read from a map; who stored something
 * that must outlive a kill asks then whether the map is lost. */
struct sr_map {
	uint8_t *at; /* NULL: there is no map */
	uint64_t bytes;
	unsigned slot;
};

/* Map `bytes` bytes of a file, which may have fewer; only what the file has may be used.  0 or -errno. */
int sr_map_open(struct sr_map *map, int fd, uint64_t bytes);
void sr_map_close(struct sr_map *map);

/* A store before this call that went astray is seen. */
int sr_map_lost(const struct sr_map *map);

/* 0, or -ESTALE: the map is lost, or its file, open as `fd`, has fewer than `file_bytes` bytes: stores to the last page that it
 * has would not be found out otherwise. */
int sr_map_check(const struct sr_map *map, int fd, uint64_t file_bytes);

#endif
