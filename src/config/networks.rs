//! Networks of addresses, as `10.0.0.0/8`.

use std::net::IpAddr;

use super::asking::words;

/// Some networks; an address by itself is one, too.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Networks(Vec<(u128, u32)>);

impl Networks {
    /// Comma-separated networks; or what is wrong with each that is none.
    pub fn new(text: &str) -> Result<Networks, Vec<String>> {
        let (networks, wrong): (Vec<_>, Vec<_>) =
            words(text).map(|word| network(word).ok_or(word)).partition(Result::is_ok);
        let remedy = "is neither an address nor a network; 10.1.2.3, 10.0.0.0/8 or 2001:db8::/32 would be";
        match wrong.is_empty() {
            true => Ok(Networks(networks.into_iter().flatten().collect())),
            false => Err(wrong.into_iter().filter_map(Result::err).map(|word| format!("{word:?} {remedy}")).collect()),
        }
    }

    /// Whether the address is in one of them.
    pub fn contain(&self, address: IpAddr) -> bool {
        let bits = bits(address);
        self.0.iter().any(|(network, length)| (bits ^ network).checked_shr(128 - length).unwrap_or(0) == 0)
    }
}

/// The first bits, and how many of them there are.
fn network(text: &str) -> Option<(u128, u32)> {
    let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => most,
        Some(length) => length.parse().ok().filter(|length| *length <= most)?,
    };
    Some((bits(address), length + 128 - most))
}

/// An address of version 4 is one of version 6 to some programs; here to all.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_a_network_or_not() {
        for (networks, address, inside) in [
            ("", "10.0.0.1", false),
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("10.1.2.3/8", "10.255.0.1", true),
            ("192.0.2.1, 10.0.0.0/8", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("0.0.0.0/0", "192.0.2.2", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
            ("2001:db8::/33", "2001:db8:7fff::1", true),
            ("::1", "::1", true),
        ] {
            let contained = Networks::new(networks).expect("networks").contain(address.parse().expect("an address"));
            assert_eq!(contained, inside, "{address} in {networks:?}");
        }
        for wrong in ["10.0.0.0/33", "10.0.0", "proxy.example", "10.0.0.0/", "2001:db8::/129", "10.0.0.0/-1"] {
            let mistakes = Networks::new(&format!("10.0.0.0/8,{wrong}")).expect_err("no network");
            assert_eq!(mistakes.len(), 1, "{mistakes:?}");
            assert!(mistakes[0].contains(wrong) && mistakes[0].contains("10.0.0.0/8 or"), "{mistakes:?}");
        }
    }
}
