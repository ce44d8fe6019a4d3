//! Who may ask: the origins of web pages, and the names that the gateway goes by.

use std::net::{IpAddr, Ipv6Addr};

/// The web pages that may subscribe beside the gateway's own and those of this machine: without such a rule every page that is open in
/// somebody's browser could read what their gateway tells (RFC 6455, 10.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origins {
    /// All.
    Any,
    /// These.
    Listed(Vec<Listed>),
}

/// One origin, or those of all names below one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    origin: Origin,
    below: bool,
}

/// Where a web page comes from (RFC 6454). A port that goes without saying is none.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

/// The names that the gateway goes by. A page of another name that leads here may not ask: somebody may have had that name lead to
/// an address that only their victim reaches (DNS rebinding).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Hosts {
    /// It was not told any: all, unless it is reached from its own machine only.
    #[default]
    Untold,
    /// All.
    Any,
    /// These, and, with `*.` before them, those below.
    Listed(Vec<String>),
}

impl Origins {
    /// Comma-separated origins, or `*`; or what is wrong with each that is none.
    pub fn new(text: &str) -> Result<Origins, Vec<String>> {
        let (listed, wrong): (Vec<_>, Vec<_>) = words(text).map(Listed::parse).partition(Result::is_ok);
        let wrong: Vec<String> = wrong.into_iter().filter_map(Result::err).collect();
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let listed: Option<Vec<Listed>> = listed.into_iter().flatten().collect();
        Ok(listed.map_or(Origins::Any, Origins::Listed))
    }

    /// Whether a page of this origin may ask a gateway that it calls `host`.
    pub fn allow(&self, origin: &str, host: &str) -> bool {
        let Origins::Listed(listed) = self else { return true };
        let Some(origin) = Origin::parse(origin) else { return false };
        // Extensions and the like call their own places what they want.
        let web = matches!(&*origin.scheme, "http" | "https");
        (web && (origin.is_local() || origin.is_at(host))) || listed.iter().any(|listed| listed.fits(&origin))
    }
}

impl Listed {
    /// `*` is none.
    fn parse(text: &str) -> Result<Option<Listed>, String> {
        if text == "*" {
            return Ok(None);
        }
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let below = rest.strip_prefix("*.");
        match Origin::parse(&format!("{scheme}://{}", below.unwrap_or(rest))) {
            Some(origin) => Ok(Some(Listed { origin, below: below.is_some() })),
            None => Err(format!(
                "{text:?} is no origin; https://app.example or http://app.example:8080 would be, without a path; https://*.app.example \
                 for all names below that, or * for all"
            )),
        }
    }

    fn fits(&self, other: &Origin) -> bool {
        let Listed { origin: Origin { scheme, host, port }, below } = self;
        (scheme, port) == (&other.scheme, &other.port)
            && if *below { is_below(&other.host, host) } else { *host == other.host }
    }
}

impl Origin {
    /// `scheme://host:port`, as some clients have it with a slash behind it.
    fn parse(text: &str) -> Option<Origin> {
        let (scheme, authority) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if scheme.is_empty() || !scheme.bytes().all(letters) {
            return None;
        }
        let (host, port) = authority_of(authority.strip_suffix('/').unwrap_or(authority))?;
        let port = port.filter(|port| Some(*port) != default_port(&scheme));
        Some(Origin { scheme, host, port })
    }

    /// Whether it comes from the machine that the browser runs on.
    fn is_local(&self) -> bool {
        self.host == "localhost" || address(&self.host).is_some_and(|address| address.is_loopback())
    }

    /// Whether it comes from where the request went to.
    fn is_at(&self, host: &str) -> bool {
        authority_of(host).is_some_and(|(host, port)| {
            host == self.host && port.filter(|port| Some(*port) != default_port(&self.scheme)) == self.port
        })
    }
}

impl Hosts {
    /// Comma-separated names, or `*`; or what is wrong with each that is none.
    pub fn new(text: &str) -> Result<Hosts, Vec<String>> {
        let mut names = Vec::new();
        let mut wrong = Vec::new();
        for word in words(text) {
            match authority_of(word.strip_prefix("*.").unwrap_or(word)) {
                Some((_, None)) if !word.ends_with(':') => names.push(word.to_ascii_lowercase()),
                _ if word == "*" => names.push(word.to_owned()),
                _ => wrong.push(format!(
                    "{word:?} is no name of a host; feed.example would be, without a scheme or a port; *.feed.example for all names \
                     below that, or * for all"
                )),
            }
        }
        match (wrong.is_empty(), names.is_empty()) {
            (false, _) => Err(wrong),
            (_, true) => Ok(Hosts::Untold),
            _ if names.iter().any(|name| name == "*") => Ok(Hosts::Any),
            _ => Ok(Hosts::Listed(names)),
        }
    }

    /// Whether a request may go by this name, without its port, to a gateway that is reached from its own machine only, or not.
    pub fn allow(&self, name: &str, local: bool) -> bool {
        // Nobody can have these lead elsewhere.
        if name == "localhost" || is_below(name, "localhost") || address(name).is_some() {
            return true;
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        match self {
            Hosts::Untold => !local,
            Hosts::Any => true,
            Hosts::Listed(names) => names.iter().any(|listed| match listed.strip_prefix("*.") {
                Some(above) => is_below(name, above),
                None => listed == name,
            }),
        }
    }
}

/// The host and the port of `host:port`, in lower case.
pub fn authority_of(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => text.split_at(rest.find(']')? + 2),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let fits = match host.strip_prefix('[') {
        Some(_) => address(host).is_some(),
        None => !host.is_empty() && host.bytes().all(named),
    };
    let port = match port.strip_prefix(':') {
        None | Some("") => None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
        Some(_) => return None,
    };
    fits.then(|| (host.to_ascii_lowercase(), port))
}

/// The address that stands in the place of a name.
fn address(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => host.parse().ok(),
    }
}

fn is_below(name: &str, above: &str) -> bool {
    name.strip_suffix(above).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// The comma-separated words of a setting.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_ask_from_the_gateway_this_machine_and_the_origins_listed() {
        let listed =
            "https://app.example, http://b.example:81, https://*.c.example, https://d.example:443/, app://obsidian.md";
        let origins = Origins::new(listed).unwrap();

        for (origin, host, allowed) in [
            ("http://feed.example:8080", "feed.example:8080", true),
            ("http://feed.example:8080/", "feed.example:8080", true),
            ("HTTP://Feed.Example:8080", "feed.example:8080", true),
            ("http://feed.example", "feed.example:80", true),
            ("https://feed.example", "feed.example:443", true),
            ("https://feed.example:443", "feed.example", true),
            ("http://[2001:db8::1]:8080", "[2001:db8::1]:8080", true),
            ("http://feed.example", "feed.example:8080", false),
            ("http://feed.example:8080", "feed.example", false),
            ("http://feed.example:8080/page", "feed.example:8080", false),
            ("http://feed.example:8080//", "feed.example:8080", false),
            ("chrome-extension://feed.example:8080", "feed.example:8080", false),
            ("http://feed.example", "", false),
            ("http://localhost:5173", "x", true),
            ("http://127.0.0.1", "x", true),
            ("https://127.1.2.3:81", "x", true),
            ("http://[::1]:1", "x", true),
            ("chrome-extension://127.0.0.1", "127.0.0.1:8080", false),
            ("file://localhost", "localhost", false),
            ("http://localhost.evil.example", "x", false),
            ("http://127.0.0.1.evil.example", "x", false),
            ("http://localhost@evil.example", "x", false),
            ("https://app.example", "x", true),
            ("https://app.example:443", "x", true),
            ("https://app.example/", "x", true),
            ("http://app.example", "x", false),
            ("https://app.example:8443", "x", false),
            ("https://xapp.example", "x", false),
            ("http://b.example:81", "x", true),
            ("https://b.example:81", "x", false),
            ("https://a.c.example", "x", true),
            ("https://a.b.c.example", "x", true),
            ("https://c.example", "x", false),
            ("https://.c.example", "x", false),
            ("https://evilc.example", "x", false),
            ("http://a.c.example", "x", false),
            ("https://d.example", "x", true),
            ("app://obsidian.md", "x", true),
            ("null", "null", false),
            ("", "", false),
            ("://", "", false),
        ] {
            assert_eq!(origins.allow(origin, host), allowed, "{origin:?} at {host:?}");
        }
        assert!(Origins::new("https://a.example, *").unwrap().allow("null", "x"));
    }

    #[test]
    fn what_can_never_match_is_refused() {
        for wrong in [
            "app.example",
            "https://app.example/page",
            "https://",
            "https://*",
            "https://*.",
            "https://a.*.example",
            "https://app.example:*",
            "https://app.example:99999",
            "https://bücher.example",
            "https://user@app.example",
            "null",
            "*.example",
        ] {
            let mistakes = Origins::new(&format!("https://good.example,{wrong}")).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{mistakes:?}");
            assert!(mistakes[0].contains(wrong) && mistakes[0].contains("https://app.example"), "{mistakes:?}");
        }
        for wrong in ["http://feed.example", "feed.example:8080", "feed.example/", "*.", "a b", "feed.*"] {
            let mistakes = Hosts::new(&format!("good.example,{wrong}")).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{mistakes:?}");
            assert!(mistakes[0].contains(wrong) && mistakes[0].contains("feed.example would be"), "{mistakes:?}");
        }
    }

    #[test]
    fn addresses_and_localhost_are_names_of_every_gateway_and_others_are_told() {
        for (told, local, name, allowed) in [
            ("", true, "127.0.0.1", true),
            ("", true, "10.1.2.3", true),
            ("", true, "[::1]", true),
            ("", true, "localhost", true),
            ("", true, "app.localhost", true),
            ("", true, "evil.example", false),
            ("", true, "localhost.evil.example", false),
            ("", false, "feed.example", true),
            ("feed.example, *.wild.example", true, "feed.example", true),
            ("feed.example, *.wild.example", true, "feed.example.", true),
            ("Feed.example, *.wild.example", false, "feed.example", true),
            ("feed.example, *.wild.example", false, "evil.example", false),
            ("feed.example, *.wild.example", false, "a.wild.example", true),
            ("feed.example, *.wild.example", false, "wild.example", false),
            ("feed.example", false, "192.0.2.1", true),
            ("*", true, "evil.example", true),
        ] {
            assert_eq!(Hosts::new(told).unwrap().allow(name, local), allowed, "{name} of {told:?}, local: {local}");
        }
    }
}
