/* Mapped files that can be truncated, or be on a failing medium: an error, where a load or a store would end the
 * process. */
#ifndef SITERIG_MAPPED_H
#define SITERIG_MAPPED_H

#include <stdint.h>

/* --- numbers that are read from a map --- */

/* Call once before the first load. */
void sr_mapped_prepare(void);

/* Load `count` values: 0, or -EIO if they cannot be read. The calling thread must not block SIGBUS. */
int sr_mapped_load(const uint32_t *at, int count, uint32_t *values);

/* --- files that are written through a map --- */

/* A file that is written through a map; stored values survive a kill. A store to a lost part of the file goes to
 * memory of this process, and so do all later stores to the map: the map is `lost`. Therefore no decision may depend
 * on values read from a map, and code that stored a value for after a kill then checks sr_map_lost. */
struct sr_map {
	uint8_t *at; /* NULL: there is no map */
	uint64_t bytes;
	unsigned slot;
};

/* Map `bytes` bytes of a file, which may be shorter; only the part that the file has may be used. 0 or -errno. */
int sr_map_open(struct sr_map *map, int fd, uint64_t bytes);
void sr_map_close(struct sr_map *map);

/* 1 if a store before this call was lost. */
int sr_map_lost(const struct sr_map *map);

/* 0, or -ESTALE: the map is lost, or its file, open as `fd`, is shorter than `file_bytes`. The second check is
 * needed because stores to the last remaining page are not detected otherwise. */
int sr_map_check(const struct sr_map *map, int fd, uint64_t file_bytes);

#endif
