#define _GNU_SOURCE
#include "base/positions.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/io.h"
#include "base/mapped.h"

struct sr_positions {
	uint64_t newest; /* atomic */
	struct sr_map map;
	int fd;
};

struct sr_positions *sr_positions_new(int fd)
{
	struct sr_positions *positions = calloc(1, sizeof(*positions));
	int rc = 0;

	if (!positions)
		return NULL;
	if (fd >= 0)
		rc = sr_io_read_whole(fd, &positions->newest, sizeof(positions->newest), 0);
	if (fd >= 0 && rc == 0)
		rc = sr_map_open(&positions->map, fd, sizeof(positions->newest));
	if (rc) {
		free(positions);
		errno = -rc;
		return NULL;
	}
	positions->fd = fd;
	return positions;
}

void sr_positions_free(struct sr_positions *positions)
{
	if (!positions)
		return;
	sr_map_close(&positions->map);
	if (positions->fd >= 0) {
		while (fdatasync(positions->fd) != 0 && errno == EINTR)
			;
		close(positions->fd);
	}
	free(positions);
}

/* Raise the counter in the file to at least `at_least`. */
static void raise_to(uint64_t *newest, uint64_t at_least)
{
	uint64_t value = __atomic_load_n(newest, __ATOMIC_ACQUIRE);
	while (value < at_least &&
	       !__atomic_compare_exchange_n(newest, &value, at_least, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		;
}

static void note(struct sr_positions *positions, uint64_t at_least)
{
	if (positions->map.at)
		raise_to((uint64_t *)(void *)positions->map.at, at_least);
}

uint64_t sr_position_draw(struct sr_positions *positions)
{
	uint64_t drawn = __atomic_add_fetch(&positions->newest, 1, __ATOMIC_ACQ_REL);
	note(positions, drawn);
	return drawn;
}

uint64_t sr_position_value(const struct sr_positions *positions)
{
	return __atomic_load_n(&positions->newest, __ATOMIC_ACQUIRE);
}

void sr_position_advance(struct sr_positions *positions, uint64_t at_least)
{
	raise_to(&positions->newest, at_least);
	note(positions, at_least);
}

int sr_positions_lost(const struct sr_positions *positions)
{
	return sr_map_check(&positions->map, positions->fd, sizeof(positions->newest)) != 0;
}
