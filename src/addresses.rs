//! Who a connection comes from, and how many of them may come from one address.
//!
//! Behind a proxy that is trusted it is whom the proxy names; what anybody else says of that counts for nothing. The gateway's own
//! machine is not counted: whatever comes from there is a proxy that names nobody, or could do anything else as well.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use warp::http::{HeaderMap, header};

use crate::config::Networks;

/// How many connections there are from each address.
pub struct Addresses {
    trusted: Networks,
    each_max: usize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection, or a request through a proxy, that is counted until this is dropped.
pub struct Counted {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

/// There are as many from this address as there may be.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMany(pub IpAddr);

impl Addresses {
    /// Nobody yet, and at most so many from each address behind proxies that are trusted.
    pub fn new(trusted: Networks, each_max: usize) -> Arc<Addresses> {
        Arc::new(Addresses { trusted, each_max, counts: Mutex::default() })
    }

    /// Counts a connection. That of a trusted proxy is none of its clients'.
    pub fn connected(self: &Arc<Addresses>, peer: IpAddr) -> Result<Option<Counted>, TooMany> {
        if self.trusted.contain(peer) { Ok(None) } else { self.count(peer) }
    }

    /// Counts a request, if a trusted proxy brings it.
    pub fn asked(self: &Arc<Addresses>, peer: IpAddr, headers: &HeaderMap) -> Result<Option<Counted>, TooMany> {
        let named = if self.trusted.contain(peer) { self.named(headers) } else { None };
        named.map_or(Ok(None), |client| self.count(client))
    }

    /// The last of those named that is no trusted proxy itself: what stands before it is hearsay.
    fn named(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let forwarded_for = headers.get_all("x-forwarded-for");
        let named: Vec<Option<IpAddr>> = match forwarded_for.iter().next() {
            Some(_) => entries(forwarded_for.iter()).map(node).collect(),
            None => entries(headers.get_all(header::FORWARDED).iter()).map(forwarded).collect(),
        };
        named.into_iter().rev().map_while(|client| client).find(|client| !self.trusted.contain(*client))
    }

    fn count(self: &Arc<Addresses>, client: IpAddr) -> Result<Option<Counted>, TooMany> {
        let address = group(client);
        if address.is_loopback() {
            return Ok(None);
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= self.each_max {
            return Err(TooMany(address));
        }
        *count += 1;
        Ok(Some(Counted { addresses: self.clone(), address }))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.addresses.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// One machine has as many addresses of version 6 as it likes, in a network of 64 bits.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        address => address,
    }
}

/// The comma-separated entries of all headers of one name.
fn entries<'a>(values: impl Iterator<Item = &'a warp::http::HeaderValue>) -> impl Iterator<Item = &'a str> {
    // What is no text names nobody, and nor does what stands before it.
    values.flat_map(|value| value.to_str().unwrap_or("?").split(',')).map(str::trim)
}

/// Whom an entry of `Forwarded` names (RFC 7239, 4).
fn forwarded(entry: &str) -> Option<IpAddr> {
    let pairs = entry.split(';').filter_map(|pair| pair.split_once('='));
    let node_of = pairs.into_iter().find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?.1.trim();
    node(node_of.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(node_of))
}

/// An address, in brackets or not, with a port or without.
fn node(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse().map(|address: SocketAddr| address.ip()).ok());
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use warp::http::{HeaderName, HeaderValue};

    use super::*;

    fn addresses(trusted: &str) -> Arc<Addresses> {
        Addresses::new(Networks::new(trusted).expect("networks"), 2)
    }

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn connections_are_counted_by_address_and_those_of_version_6_by_network() {
        let addresses = addresses("10.0.0.0/8");
        let connect = |text: &str| addresses.connected(text.parse().expect("an address"));
        let held = ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8::2:1", "192.0.2.2"].map(connect);

        for full in ["192.0.2.1", "2001:db8::ffff:ffff:ffff:ffff"] {
            assert!(connect(full).is_err(), "{full}");
        }
        for free in ["2001:db8:0:1::1", "192.0.2.2"] {
            assert!(connect(free).is_ok_and(|counted| counted.is_some()), "{free}");
        }
        for uncounted in ["127.0.0.1", "::1", "10.1.2.3"] {
            assert!(connect(uncounted).is_ok_and(|counted| counted.is_none()), "{uncounted}");
        }
        drop(held);
        assert!(connect("192.0.2.1").is_ok());
        assert!(addresses.counts.lock().expect("whole").is_empty(), "those that went are forgotten");
    }

    #[test]
    fn the_client_is_the_last_that_a_trusted_proxy_names_and_does_not_trust() {
        let addresses = addresses("10.0.0.0/8, 2001:db8::/32");
        for (line, value, client) in [
            ("x-forwarded-for", "192.0.2.1", Some("192.0.2.1")),
            ("x-forwarded-for", "198.51.100.9, 192.0.2.1, 10.0.0.7", Some("192.0.2.1")),
            ("x-forwarded-for", "192.0.2.1:4711", Some("192.0.2.1")),
            ("x-forwarded-for", "2001:db9::1", Some("2001:db9::1")),
            ("x-forwarded-for", "[2001:db9::1]:4711", Some("2001:db9::1")),
            ("x-forwarded-for", "::ffff:192.0.2.1", Some("192.0.2.1")),
            ("x-forwarded-for", "198.51.100.9, unknown, 10.0.0.7", None),
            ("x-forwarded-for", "10.0.0.7", None),
            ("x-forwarded-for", "", None),
            ("forwarded", "for=198.51.100.9, For=192.0.2.1;proto=https, for=10.0.0.7", Some("192.0.2.1")),
            ("forwarded", "proto=https;for=\"[2001:db9::1]:4711\"", Some("2001:db9::1")),
            ("forwarded", "for=_hidden", None),
            ("forwarded", "by=192.0.2.1", None),
        ] {
            let named = addresses.named(&headers(&[(line, value)]));
            assert_eq!(named.map(|named| named.to_string()).as_deref(), client, "{line}: {value}");
        }
        let both = headers(&[("forwarded", "for=198.51.100.9"), ("x-forwarded-for", "192.0.2.1")]);
        assert_eq!(addresses.named(&both), "192.0.2.1".parse().ok());

        let untrusted = addresses.asked("198.51.100.1".parse().expect("an address"), &both);
        assert!(untrusted.is_ok_and(|counted| counted.is_none()), "it was counted when it connected");
    }
}
