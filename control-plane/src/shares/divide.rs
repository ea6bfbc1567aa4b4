//! How a server's connections are divided: arithmetic only.

/// What a node says of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// What it may have open, and so what may be open at any moment.
    pub(super) held: u32,
    /// What it needs.
    pub(super) wanted: u32,
    /// What it could use at most.
    pub(super) most: u32,
}

impl Claim {
    fn need(self) -> u32 {
        self.wanted.min(self.most)
    }
}

/// What is decided for one of the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    /// What master notes as held by it: nobody else gets that.
    pub(super) share: u32,
    /// What it may have open from now on: less than its share while it is to give back some of it.
    pub(super) limit: u32,
    /// Whether others have to give something back before it has its part.
    pub(super) waits_for_others: bool,
}

/// Decides for the claim at `mine`, whose `held` is what the node itself says.
///
/// The sum of all shares stays within `budget`, if it was before, and otherwise does not rise: a share rises into what is free only,
/// and falls only to what its node no longer has open. Nobody has to give anything back while nobody needs more than they have.
pub(super) fn decide(budget: u32, claims: &[Claim], mine: usize) -> Decision {
    let claim = claims[mine];
    let target = divide(budget, claims)[mine];
    let others = || claims.iter().enumerate().filter(|(at, _)| *at != mine).map(|(_, claim)| *claim);
    let held_by_others: u32 = others().map(|other| other.held).sum();
    let free = budget.saturating_sub(held_by_others);
    let is_contested = claim.held > free || others().any(|other| other.need() > other.held);
    let share = claim.held.max(target.min(free));
    let limit = if target < claim.held && !is_contested { claim.held } else { share.min(target) };
    Decision { share, limit, waits_for_others: limit < target && claim.need() > limit }
}

/// What each node should have: what it needs, or as much as everybody else who needs more than that; then as much of the rest as
/// everybody else who needs anything, so that a burst finds something.
fn divide(budget: u32, claims: &[Claim]) -> Vec<u32> {
    let needs: Vec<u32> = claims.iter().map(|claim| claim.need()).collect();
    let parts = level(budget, &needs);
    let rest = budget - parts.iter().sum::<u32>();
    let room: Vec<u32> = claims
        .iter()
        .zip(&parts)
        .map(|(claim, part)| if claim.wanted > 0 { claim.most.saturating_sub(*part) } else { 0 })
        .collect();
    parts.iter().zip(level(rest, &room)).map(|(part, more)| part + more).collect()
}

/// Fills all to the same height, as water would, none beyond its cap.
fn level(amount: u32, caps: &[u32]) -> Vec<u32> {
    let mut by_cap: Vec<usize> = (0..caps.len()).collect();
    by_cap.sort_by_key(|at| caps[*at]);
    let (mut left, mut parts) = (amount, vec![0; caps.len()]);
    for (done, at) in by_cap.iter().enumerate() {
        let still = u32::try_from(caps.len() - done).unwrap_or(u32::MAX);
        parts[*at] = caps[*at].min(left / still);
        left -= parts[*at];
    }
    // What does not divide goes to the first that have room.
    for (part, cap) in parts.iter_mut().zip(caps) {
        if left > 0 && *part < *cap {
            *part += 1;
            left -= 1;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Claim, decide, divide};

    fn claim() -> impl Strategy<Value = Claim> {
        (0_u32..60, 0_u32..60).prop_map(|(wanted, most)| Claim { held: 0, wanted, most })
    }

    proptest! {
        #[test]
        fn parts_are_fair_and_nothing_is_left_that_somebody_could_use(
            budget in 0_u32..100,
            claims in prop::collection::vec(claim(), 1..6),
        ) {
            let parts = divide(budget, &claims);
            let useful: u32 = claims.iter().filter(|claim| claim.wanted > 0).map(|claim| claim.most).sum();
            prop_assert_eq!(parts.iter().sum::<u32>(), budget.min(useful));
            for (claim, part) in claims.iter().zip(&parts) {
                prop_assert!(*part <= claim.most && (claim.wanted > 0 || *part == 0));
                // Whoever has less than it needs has as much as anybody else, but for what does not divide.
                if *part < claim.need() {
                    prop_assert!(parts.iter().all(|other| *other <= part + 1), "{:?} of {:?}", parts, claims);
                }
            }
        }

        /// Nodes come, go, need more or less and say so in any order, and the server's budget changes: what may be open never passes
        /// it, but for what was open when it fell, and when all is said everybody has their part.
        #[test]
        fn the_sum_never_passes_the_budget_and_everybody_comes_to_their_part(
            mut budget in 1_u32..50,
            events in prop::collection::vec(
                (0_usize..4, 0_u32..60, any::<bool>(), any::<bool>(), prop::option::weighted(0.1, 1_u32..50)),
                1..80,
            ),
        ) {
            /// A node: what it may open, what it has open, what master notes.
            #[derive(Clone, Copy, Default)]
            struct Node { limit: u32, open: u32, share: u32, wanted: u32, most: u32 }
            let mut nodes = [Node { most: 60, ..Node::default() }; 4];
            let claims = |nodes: &[Node; 4], me: usize| {
                let mut claims =
                    nodes.map(|node| Claim { held: node.share, wanted: node.wanted, most: node.most });
                claims[me].held = nodes[me].limit.max(nodes[me].open);
                claims
            };
            let mut bound = budget;
            for (me, wanted, is_heard, closes, another_budget) in events {
                budget = another_budget.unwrap_or(budget);
                let node = &mut nodes[me];
                node.wanted = wanted;
                // It opens all it may, and closes what it may no longer have, now or later.
                node.open = if closes { wanted.min(node.limit) } else { node.open.max(wanted.min(node.limit)) };
                let decision = decide(budget, &claims(&nodes, me), me);
                nodes[me].share = decision.share;
                // The answer may be lost on its way.
                if is_heard {
                    nodes[me].limit = decision.limit;
                }
                let shares: u32 = nodes.iter().map(|node| node.share).sum();
                bound = budget.max(bound);
                prop_assert!(shares <= bound, "{} of {}", shares, bound);
                bound = budget.max(shares);
                prop_assert!(nodes.iter().all(|node| node.limit.max(node.open) <= node.share));
            }
            for _ in 0..4 {
                for me in 0..nodes.len() {
                    nodes[me].open = nodes[me].open.min(nodes[me].limit);
                    let decision = decide(budget, &claims(&nodes, me), me);
                    (nodes[me].share, nodes[me].limit) = (decision.share, decision.limit);
                }
            }
            prop_assert!(nodes.iter().map(|node| node.share).sum::<u32>() <= budget);
            let needs: u32 = nodes.iter().map(|node| node.wanted.min(node.most)).sum();
            for node in &nodes {
                let fair = budget / 4;
                prop_assert!(node.limit >= node.wanted.min(node.most).min(fair), "{} < {}", node.limit, fair);
                prop_assert!(needs > budget || node.limit >= node.wanted.min(node.most));
            }
        }
    }

    #[test]
    fn whoever_is_not_in_need_keeps_what_nobody_else_needs() {
        let idle = Claim { held: 30, wanted: 1, most: 40 };
        let busy = Claim { held: 10, wanted: 10, most: 40 };
        assert_eq!(decide(40, &[idle, busy], 0).limit, 30);
        let busier = Claim { wanted: 25, ..busy };
        let decision = decide(40, &[idle, busier], 0);
        assert_eq!((decision.share, decision.limit), (30, 8));
        assert!(decide(40, &[idle, busier], 1).waits_for_others);
    }
}
