/* The random choices of fault rules, in integers only. blockfs/core/fault_decisions.py has the arithmetic, and
 * tests/vectors/fault_decisions.json has values of both languages.
 *
 * No state; any thread.
 */
#ifndef SITERIG_DECISIONS_H
#define SITERIG_DECISIONS_H

#include <stdint.h>

#define SR_FAULT_ALWAYS (1ull << 53)      /* the threshold of a rule without a probability */
#define SR_FAULT_UNLIMITED UINT64_MAX     /* `times` of a rule without a limit */

/* Numbers of the choices of one operation: the first ones belong to the delay. */
enum { SR_FIRST_CHOICE = 8 };

/* The counting part of a rule. */
struct sr_fault_turns {
	uint64_t stream;     /* start of the rule's random stream */
	uint64_t occurrence; /* number of the first matching operation that fires; 0: none */
	uint64_t every;      /* distance between operations that fire; 0: none */
	uint64_t threshold;  /* the probability times 2^53 */
	uint64_t times;      /* how often the rule fires at most */
};

/* 1 if the n-th matching operation (1, 2, ...) is one that fires, as long as `times` allows it. */
int sr_fault_fires(const struct sr_fault_turns *turns, uint64_t n);

/* The j-th choice for the n-th matching operation; the second one is a number below `bound`. */
uint64_t sr_fault_draw(uint64_t stream, uint64_t n, uint64_t j);
uint64_t sr_fault_below(uint64_t stream, uint64_t n, uint64_t j, uint64_t bound);

enum sr_distribution { SR_UNIFORM, SR_NORMAL, SR_PARETO };
uint64_t sr_fault_delay_ns(uint64_t stream, uint64_t n, uint64_t delay_ns, uint64_t jitter_ns, int distribution);

#endif
