#include "faults/decisions.h"

enum { PARETO_MAX = 64 };

static uint64_t mix(uint64_t z)
{
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static uint64_t output(uint64_t state, uint64_t k)
{
	return mix(state + k * 0x9e3779b97f4a7c15u);
}

uint64_t sr_fault_draw(uint64_t stream, uint64_t n, uint64_t j)
{
	return output(output(stream, n), j);
}

uint64_t sr_fault_below(uint64_t stream, uint64_t n, uint64_t j, uint64_t bound)
{
	return (uint64_t)((unsigned __int128)sr_fault_draw(stream, n, j) * bound >> 64);
}

static int is_turn(const struct sr_fault_turns *turns, uint64_t n)
{
	if (turns->occurrence && turns->every)
		return n >= turns->occurrence && (n - turns->occurrence) % turns->every == 0;
	if (turns->occurrence)
		return n == turns->occurrence;
	return !turns->every || n % turns->every == 0;
}

int sr_fault_fires(const struct sr_fault_turns *turns, uint64_t n)
{
	return is_turn(turns, n) && output(turns->stream, n) >> 11 < turns->threshold;
}

/* The integer square root. */
static uint64_t root_of(uint64_t value)
{
	uint64_t root = 0;

	for (int bit = 31; bit >= 0; bit--) {
		uint64_t next = root | 1ull << bit;

		if (next <= value / next)
			root = next;
	}
	return root;
}

static uint64_t normal_ns(uint64_t stream, uint64_t n, uint64_t delay_ns, uint64_t jitter_ns)
{
	int64_t sum = -(6ll << 32);

	for (uint64_t j = 1; j <= 6; j++) {
		uint64_t drawn = sr_fault_draw(stream, n, j);

		sum += (int64_t)(drawn >> 32) + (int64_t)(drawn & UINT32_MAX);
	}
	__int128 found = (__int128)delay_ns + (((__int128)sum * (__int128)jitter_ns) >> 32);
	return found < 0 ? 0 : (uint64_t)found;
}

static uint64_t pareto_ns(uint64_t stream, uint64_t n, uint64_t delay_ns, uint64_t jitter_ns)
{
	uint64_t root = root_of(sr_fault_draw(stream, n, 1));
	unsigned __int128 most = (unsigned __int128)PARETO_MAX * jitter_ns;

	if (root == 0)
		root = 1;
	unsigned __int128 added = (unsigned __int128)((1ull << 32) - root) * jitter_ns / root;
	return delay_ns + (uint64_t)(added < most ? added : most);
}

uint64_t sr_fault_delay_ns(uint64_t stream, uint64_t n, uint64_t delay_ns, uint64_t jitter_ns, int distribution)
{
	if (jitter_ns == 0)
		return delay_ns;
	if (distribution == SR_NORMAL)
		return normal_ns(stream, n, delay_ns, jitter_ns);
	if (distribution == SR_PARETO)
		return pareto_ns(stream, n, delay_ns, jitter_ns);
	uint64_t most = delay_ns + sr_fault_below(stream, n, 1, 2 * jitter_ns + 1);
	return most < jitter_ns ? 0 : most - jitter_ns;
}
