//! A link that fails as networks do: bytes that stop without a word, connections that are cut, answers that take their time.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Database;

/// How many bytes travel at once.
const CHUNK_BYTES: usize = 64 << 10;

/// A TCP proxy in front of a database's server. Ends with the test.
pub struct Proxy {
    pub address: SocketAddr,
    link: watch::Sender<Link>,
    cut: Arc<Mutex<CancellationToken>>,
    accepting: tokio::task::JoinHandle<()>,
}

/// What the link does with bytes, in both directions.
#[derive(Clone, Copy, PartialEq)]
enum Link {
    /// Carries them, each chunk after this time.
    Carries(Duration),
    /// Keeps them: both ends see a connection that stands, and nothing on it.
    Holds,
}

impl Proxy {
    /// A proxy that passes everything on to the database's server.
    pub async fn before(db: &Database) -> Proxy {
        let config = db.config();
        let tokio_postgres::config::Host::Tcp(host) = &config.get_hosts()[0] else { panic!("tests connect by TCP") };
        let server = (host.clone(), config.get_ports()[0]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let link = watch::Sender::new(Link::Carries(Duration::ZERO));
        let cut = Arc::new(Mutex::new(CancellationToken::new()));
        let (links, cuts) = (link.clone(), cut.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (server, mut link, cut) = (server.clone(), links.subscribe(), cuts.lock().unwrap().clone());
                tokio::spawn(async move {
                    let carry = async {
                        passable(&mut link).await;
                        let far = TcpStream::connect(server).await?;
                        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                        tokio::try_join!(pump(near_in, far_out, link.clone()), pump(far_in, near_out, link))
                    };
                    // However it ends, both sides are closed.
                    let _: Option<io::Result<_>> = cut.run_until_cancelled(carry).await;
                });
            }
        });
        Proxy { address, link, cut, accepting }
    }

    /// The database as it is reached through here.
    pub fn config(&self, db: &Database) -> tokio_postgres::Config {
        switchboard::config::database_config(&self.url(db), None).unwrap()
    }

    /// Its address through here.
    pub fn url(&self, db: &Database) -> String {
        let (user, rest) = db.url.rsplit_once('@').unwrap();
        let (_, name) = rest.split_once('/').unwrap();
        format!("{user}@{}/{name}", self.address)
    }

    /// Passes everything on, what was held first.
    pub fn pass(&self) {
        self.delay(Duration::ZERO);
    }

    /// Passes everything on, late.
    pub fn delay(&self, by: Duration) {
        self.link.send_replace(Link::Carries(by));
    }

    /// Stops passing anything on, in either direction, and closes nothing; new connections stand and stay silent too.
    pub fn blackhole(&self) {
        self.link.send_replace(Link::Holds);
    }

    /// Closes every connection there is.
    pub fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

/// Waits until the link carries; how late.
async fn passable(link: &mut watch::Receiver<Link>) -> Duration {
    let carries = link.wait_for(|link| *link != Link::Holds).await;
    match carries.map(|link| *link) {
        Ok(Link::Carries(late)) => late,
        // The test is over.
        _ => std::future::pending().await,
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut link: watch::Receiver<Link>) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK_BYTES];
    loop {
        passable(&mut link).await;
        let count = from.read(&mut bytes).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        tokio::time::sleep(passable(&mut link).await).await;
        to.write_all(&bytes[..count]).await?;
    }
}
