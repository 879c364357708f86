/* The counter from which every record of every disk of a host draws its position.  Any thread.
 *
 * Fault contract: a position is in the file (mapped) before anybody has it, so after a kill none is drawn twice.  If the file is
 * cut, or its medium fails, the counter goes on from memory: no position is drawn twice while the process lives, and
 * sr_positions_lost tells. */
#ifndef SITERIG_POSITIONS_H
#define SITERIG_POSITIONS_H

#include <stdint.h>

struct sr_positions;

/* `fd`: the file (owned), which begins with the newest position; -1: none, they begin anew.  NULL: errno says why. */
struct sr_positions *sr_positions_new(int fd);
void sr_positions_free(struct sr_positions *positions); /* what was drawn is on stable storage then, or lost */

uint64_t sr_position_draw(struct sr_positions *positions);
uint64_t sr_position_value(const struct sr_positions *positions);
void sr_position_advance(struct sr_positions *positions, uint64_t at_least); /* never draw `at_least` or less again */

/* 1: what was drawn may not be in the file. */
int sr_positions_lost(const struct sr_positions *positions);

#endif
