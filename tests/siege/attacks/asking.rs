//! Web pages of strangers, and names that lead here: what a browser would send for them.

use futures_util::future::join_all;

use crate::attacks::Field;
use crate::clients::ask_as;

/// How many ask at the same time.
const ASKERS: usize = 4;
/// How often each asks until the attack has come to what it is about.
const ENOUGH: usize = 20;
/// What a page could ask for.
const PATHS: [&str; 3] = ["/v1/snapshot?table=prey_large", "/v1/changes", "/v1/feed?table=prey&from=now"];

/// A page of another origin.
pub async fn foreign_origins(field: &Field) {
    ask_on(field, |field| format!("host: {}\r\norigin: https://evil.example\r\n", field.address())).await;
}

/// A page whose name was made to lead to this machine.
pub async fn foreign_hosts(field: &Field) {
    ask_on(field, |field| format!("host: rebound.example:{}\r\n", field.address().port())).await;
}

/// An image of a page of another site: no origin, but the browser says where it comes from.
pub async fn images(field: &Field) {
    let headers = "sec-fetch-site: cross-site\r\nsec-fetch-mode: no-cors\r\nsec-fetch-dest: image\r\n";
    ask_on(field, |field| format!("host: {}\r\n{headers}", field.address())).await;
}

/// Asks on and on; whatever is answered otherwise than with a refusal must not be.
async fn ask_on(field: &Field, headers: impl Fn(&Field) -> String) {
    let asker = async |_| {
        for n in 0.. {
            let path = PATHS[n % PATHS.len()];
            let answer = ask_as(field.address(), path, &headers(field)).await;
            match answer {
                Some(answer) if answer.status >= 400 => {
                    let (code, message) = answer.refusal();
                    field.refused(code, message);
                }
                Some(answer) => return field.violation(format!("{path} was answered with {}", answer.status)),
                None => tokio::task::yield_now().await,
            }
            if n == ENOUGH {
                field.landed();
            }
        }
    };
    join_all((0..ASKERS).map(asker)).await;
}
