//! Who presents tokens that nobody made: counted by address, so that guessing ends soon.
//!
//! Only unknown tokens count. A token that was made is never guessed, whatever became of it, so that those who share an
//! address with a guesser (behind one router, in an anonymity network, behind a proxy) lose nothing by it.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Unknown tokens that an address may present within [`PERIOD`].
const ALLOWED: usize = 20;

const PERIOD: Duration = Duration::from_secs(60);

/// Addresses that are remembered: about a megabyte, if all of them guess.
const ADDRESSES: usize = 4096;

/// The unknown tokens of the last minute.
#[derive(Debug, Default)]
pub struct BadTokens {
	/// When each address presented some, in order. One entry is for all who have no address.
	by_address: HashMap<Option<IpAddr>, VecDeque<Instant>>,
}

impl BadTokens {
	/// Counts one for an address as the server writes it, and says whether it is one too many.
	pub fn count(&mut self, address: &str, now: Instant) -> bool {
		let address = counted_address(address);
		if !self.by_address.contains_key(&address) && self.by_address.len() >= ADDRESSES {
			self.make_room(now);
		}
		let times = self.by_address.entry(address).or_default();
		while times.front().is_some_and(|first| now.duration_since(*first) >= PERIOD) {
			times.pop_front();
		}
		let is_too_many = times.len() >= ALLOWED;
		if is_too_many {
			times.pop_front();
		}
		times.push_back(now);
		is_too_many
	}

	/// Forgets those who have presented none for long enough, or else who has presented none for the longest time.
	fn make_room(&mut self, now: Instant) {
		let is_recent =
			|times: &VecDeque<Instant>| times.back().is_some_and(|last| now.duration_since(*last) < PERIOD);
		self.by_address.retain(|_, times| is_recent(times));
		if self.by_address.len() >= ADDRESSES {
			let oldest =
				self.by_address.iter().min_by_key(|(_, times)| times.back()).map(|(address, _)| *address);
			if let Some(oldest) = oldest {
				self.by_address.remove(&oldest);
			}
		}
	}
}

/// What counts as one address: of IPv6 the network, a /64, since each subscriber has one.
fn counted_address(address: &str) -> Option<IpAddr> {
	// A link-local address may be followed by its interface.
	let address = address.split_once('%').map_or(address, |(address, _)| address);
	Some(match address.parse::<IpAddr>().ok()?.to_canonical() {
		IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
		address @ IpAddr::V4(_) => address,
	})
}

#[cfg(test)]
mod tests {
	use super::*;
	use crate::clock::monotonic;

	/// How many of so many in a row are too many.
	fn too_many(counter: &mut BadTokens, address: &str, attempts: usize, now: Instant) -> usize {
		(0..attempts).filter(|_| counter.count(address, now)).count()
	}

	#[test]
	fn twenty_in_a_minute_are_allowed_and_the_next_one_is_too_many() {
		let (mut counter, start) = (BadTokens::default(), monotonic());
		assert_eq!(too_many(&mut counter, "192.0.2.1", 20, start), 0);
		assert!(counter.count("192.0.2.1", start));
		assert!(counter.count("192.0.2.1", start + Duration::from_secs(59)));
		assert!(!counter.count("192.0.2.1", start + Duration::from_secs(60)));
	}

	#[test]
	fn the_minute_is_the_last_one_and_not_that_of_the_clock() {
		let (mut counter, start) = (BadTokens::default(), monotonic());
		for second in 0..200 {
			// One every four seconds is fifteen a minute.
			assert!(!counter.count("192.0.2.1", start + Duration::from_secs(4 * second)));
		}
	}

	#[test]
	fn each_address_is_counted_by_itself_and_an_ipv6_network_as_one() {
		let (mut counter, now) = (BadTokens::default(), monotonic());
		assert_eq!(too_many(&mut counter, "192.0.2.1", 21, now), 1);
		assert!(counter.count("::ffff:192.0.2.1", now));
		assert!(!counter.count("192.0.2.2", now));
		assert_eq!(too_many(&mut counter, "2001:db8:0:1::1", 20, now), 0);
		assert!(counter.count("2001:db8:0:1:ffff:ffff:ffff:ffff", now));
		assert!(!counter.count("2001:db8:0:2::1", now));
		assert_eq!(too_many(&mut counter, "fe80::1%eth0", 20, now), 0);
		assert!(counter.count("fe80::2%eth0", now));
	}

	#[test]
	fn who_has_no_address_is_counted_too() {
		let (mut counter, now) = (BadTokens::default(), monotonic());
		assert_eq!(too_many(&mut counter, "", 20, now), 0);
		assert!(counter.count("no address", now));
	}

	#[test]
	fn no_more_addresses_are_remembered_than_may_be_and_the_busiest_stay() {
		let (mut counter, start) = (BadTokens::default(), monotonic());
		let address = |number: usize| Ipv6Addr::from_bits((number as u128) << 64).to_string();
		for number in 0..5_000 {
			let now = start + Duration::from_millis(number as u64);
			counter.count("192.0.2.1", now);
			counter.count(&address(number), now);
			assert!(counter.by_address.len() <= ADDRESSES);
		}
		assert!(counter.count("192.0.2.1", start + Duration::from_secs(5)));
		// Once they are over, all of them go at once.
		counter.count("192.0.2.2", start + Duration::from_secs(100));
		assert_eq!(counter.by_address.len(), 1);
	}
}
