//! Where the gateway is.

use std::fmt;

use tungstenite::http::Uri;

/// The path of the feed.
const FEED: &str = "/v1/feed";

/// The address of a gateway's feed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Address {
    tls: bool,
    authority: String,
    path: String,
}

impl Address {
    /// Reads http, https, ws and wss, with or without the path of the feed; or says what is wrong, and what would be right.
    pub fn parse(text: &str) -> Result<Address, String> {
        let wrong = |why: &str| format!("{text:?} {why}; http://127.0.0.1:8080 or wss://feed.example/v1/feed would do");
        let uri: Uri = text.trim().parse().map_err(|_| wrong("is no address"))?;
        let tls = match uri.scheme_str() {
            Some("http" | "ws") => false,
            Some("https" | "wss") => true,
            _ => return Err(wrong("does not begin with http, https, ws or wss")),
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        // Not repeated: it may hold a password.
        if authority.contains('@') {
            return Err("a name or a password in the address means nothing to a gateway; leave it out".to_owned());
        }
        if uri.query().is_some() {
            return Err(wrong("has parameters; give tables as arguments, and --where, --columns and --from"));
        }
        let path = uri.path().trim_end_matches('/');
        let path = if path.ends_with(FEED) { path.to_owned() } else { format!("{path}{FEED}") };
        Ok(Address { tls, authority: authority.to_owned(), path })
    }

    /// The address of a subscription.
    pub fn feed(&self, query: &str) -> String {
        format!("{self}?{query}")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_leads_to_the_feed() {
        for (text, feed) in [
            ("http://127.0.0.1:8080", "ws://127.0.0.1:8080/v1/feed"),
            ("http://127.0.0.1:8080/", "ws://127.0.0.1:8080/v1/feed"),
            ("ws://[::1]:8080/v1/feed", "ws://[::1]:8080/v1/feed"),
            ("https://feed.example/v1/feed/", "wss://feed.example/v1/feed"),
            ("wss://feed.example/behind/a/proxy", "wss://feed.example/behind/a/proxy/v1/feed"),
        ] {
            assert_eq!(Address::parse(text).map(|address| address.to_string()), Ok(feed.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_named_with_the_remedy_and_no_password_repeated() {
        for text in ["", "8080", "localhost:8080", "ftp://x", "http://", "http://x/v1/feed?table=a"] {
            let mistake = Address::parse(text).expect_err(text);
            assert!(mistake.contains("would do"), "{text}: {mistake}");
        }
        let mistake = Address::parse("http://me:secret@x").expect_err("a password");
        assert!(!mistake.contains("secret"), "{mistake}");
    }
}
