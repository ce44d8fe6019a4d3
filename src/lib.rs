//! Switchboard: a change-feed gateway for PostgreSQL. The map.
//!
//! # The path of a change
//!
//! 1. A row changes. The trigger of `sql/capture.sql` writes it to the log, inside the user's transaction; while that commits, another
//!    one draws the transaction's mark and rings the doorbell, if the feed sleeps.
//! 2. The [`listener`] hears the doorbell and wakes the [`feed`].
//! 3. The feed has the transaction numbered (`switchboard.number()` in `sql/number.sql`), so that it has a position, and reads it
//!    from the [`log`] as parts of commits, made of [`change`]s.
//! 4. The [`hub`] finds by its values which kinds of subscription may want it, encodes it once for each kind that does, as its
//!    [`selection`] and the [`protocol`] say, appends it to the history that all subscriptions of that kind share, and wakes them. It waits
//!    for nobody.
//! 5. Each [`subscription`] takes what is new in its history and puts it into its client's [`outbox`]. The [`subscriber`], which is the
//!    connection, writes what waits there to its [`socket`] with one call; over plain HTTP, [`plain`] writes it into the body of an answer.
//!
//! A subscription that was away, or is too slow for the history, reads [`pages`] of the log, which it shares with others that are about
//! as far, and then joins the hub; one that wants the current rows first gets them from a [`snapshot`]. The [`server`] accepts
//! connections, gives each one of its [`places`] ([`addresses`] counts whom they come from), and hands them to subscribers. Those of
//! `/listen` are served by [`listen`], which has nothing to do with the log.
//!
//! ```text
//! main ─► run ─┬─► server ─┬─► subscriber ─┬─► subscription ─┬─► hub ─┬─► protocol ─► selection ─► filter ─► change
//!              │           └─► plain ──────┤                 │        └─► table
//!              │                           └─► outbox        ├─► snapshot ─► log
//!              │                                             └─► pages ─► log ─► table, change
//!              └─► feed ─┬─► role ─► listener ─► session
//!                        ├─► log ─► session
//!                        └─► hub
//! ```
//!
//! Any number of gateways do so beside each other; the [`role`] of each says who numbers. What all of this promises, and why it holds, is
//! told in `docs/delivery.md`; `tests/drill` breaks it on purpose.
//!
//! Beside that path: [`plain`] serves the feed over plain HTTP and [`page`] is the live page; [`filter`] decides which rows a selection
//! wants, and [`judging`] gives it a thread if that takes long, [`documents`] describes the wire to programs, [`tail`] is the subscriber
//! for the terminal, [`names`] knows how names are typed and told, [`config`] holds every setting and bound, [`metrics`] what is counted and logged, [`install`] and [`check`] are the commands
//! for a database, [`local`] and [`dev`] the private PostgreSQL of `switchboard dev` and of the tests.

pub mod addresses;
pub mod answers;
pub mod body;
pub mod change;
pub mod check;
pub mod config;
pub mod dev;
pub mod documents;
pub mod feed;
pub mod filter;
pub mod hub;
pub mod install;
pub mod judging;
pub mod listen;
pub mod listener;
pub mod local;
pub mod log;
pub mod metrics;
pub mod names;
pub mod outbox;
pub mod page;
pub mod pages;
pub mod places;
pub mod plain;
pub mod protocol;
pub mod role;
pub mod selection;
pub mod server;
pub mod session;
pub mod snapshot;
pub mod socket;
pub mod subscriber;
pub mod subscription;
pub mod table;
pub mod tail;

use std::sync::Arc;

use tokio::net::TcpListener;

use crate::config::Config;
use crate::feed::Feed;
use crate::hub::{Bounds, Hub};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::session::Database;
use crate::snapshot::{Snapshots, Store};
use crate::subscriber::Shared;

/// Connections of the feed's own: one to number and read, one for a snapshot's numbering beside it, one to spare.
const FEED_CONNECTIONS_MAX: usize = 3;

/// Connections for those who catch up, and for what filters ask: a large snapshot has one of the others for long.
const CATCH_UP_CONNECTIONS_MAX: usize = 2;

/// Runs a gateway on a bound socket until `stop` resolves, and ends it gracefully within the stop time-out.
///
/// PostgreSQL need not be there; the gateway waits for it, and for its return, for ever.
pub async fn run(config: Config, socket: TcpListener, stop: impl Future<Output = ()>) {
    let metrics = Arc::new(Metrics::default());
    let bounds = Bounds { kinds_max: config.selections_max, ..Bounds::new(config.history_bytes_max) };
    let hub = Arc::new(Hub::bounded(bounds));
    let feed_log = Log::new(&Database::new(&config.database), FEED_CONNECTIONS_MAX);
    let readers = feed_log.with_connections(config.readers_max);
    let log = feed_log.with_connections(CATCH_UP_CONNECTIONS_MAX);
    let feed = Feed::new(config.clone(), feed_log.clone(), hub.clone(), metrics.clone());
    let store = Store::new(config.snapshot_bytes_max, config.snapshots_bytes_max);
    let snapshots = Arc::new(Snapshots::new(readers, feed_log, feed.nudge(), store, config.snapshot_patience));
    let heartbeat = config.heartbeat;
    let shared = Arc::new(Shared::new(config, hub.clone(), log, snapshots, metrics));

    let stopping = shared.stop.clone();
    let mut feeding = tokio::spawn(feed.run());
    let beating = tokio::spawn(feed::heart(hub, heartbeat));
    let catching_up = shared.clone();
    let aging = tokio::spawn(async move { catching_up.pages.age().await });
    let serving = server::serve(socket, shared);
    let stopper = async {
        stop.await;
        stopping.cancel();
    };
    tokio::select! {
        _ = async { tokio::join!(serving, stopper) } => {}
        // Better no gateway than one that seems to live and has nothing to say.
        ended = &mut feeding => panic!("the feed goes on for ever, and ended: {ended:?}"),
    }
    // They run for ever, and hold nothing that has to be ended in order.
    feeding.abort();
    beating.abort();
    aging.abort();
}

/// Says on standard output, in one line, where the gateway can be reached. Connections are accepted from the bind on.
pub fn announce(address: std::net::SocketAddr) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // Nobody may be reading; that is no reason to stop.
    let _ = writeln!(out, "listening on http://{address} ws://{address}/v1/feed").and_then(|()| out.flush());
}
