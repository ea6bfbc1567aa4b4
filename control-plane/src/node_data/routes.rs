//! The routes that the node knows, written down as it learns of them.
//!
//! The file holds the routes as of a moment, and then what became known since: that older routes of a store do not count any more,
//! which is on the disk before the next such thing is heard; and up to when nothing else had changed. When the node has learned of
//! other routes, the file is written anew beside the old one, which takes no less note of changes meanwhile.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kernel::{Engine, Hostname, ServerId, StoreId, StoreStatus};
use serde::{Deserialize, Serialize};
use tenancy::{DatabaseRoute, Remembered, Route, RouteNews};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::{Instant, MissedTickBehavior, interval};
use vault::Sealed;

use super::{Moment, NodeData, SealedFile, read_sealed};
use crate::cx::Cx;

const NAME: &str = "routes";
const NEW_NAME: &str = "routes.new";
/// How often it is looked whether there is something to write. What is outdated is written at once.
const PERIOD: Duration = Duration::from_secs(5);
/// Writing everything takes at most this part of the time.
const PART: u32 = 20;
/// Routes of one sealed value.
const CHUNK: usize = 256;
/// What was appended may be so long, or as long as what it was appended to.
const SHORT: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
enum Value {
    Routes(Vec<KeptRoute>),
    /// Routes of these stores that are older do not count.
    Outdated(Vec<(StoreId, i64)>),
    /// Nothing else had changed by then, of what is followed.
    Followed(Moment),
}

#[derive(Serialize, Deserialize)]
struct KeptRoute {
    hostname: String,
    store: StoreId,
    status: StoreStatus,
    is_read_only: bool,
    version: i64,
    database: Option<KeptDatabase>,
    held: Moment,
    is_followed: bool,
}

#[derive(Serialize, Deserialize)]
struct KeptDatabase {
    engine: Engine,
    server: Option<ServerId>,
    schema_version: i64,
    sealed: String,
    credential_version: i32,
}

impl KeptRoute {
    fn new(data: &NodeData, remembered: &Remembered) -> Self {
        let Remembered { hostname, route, held, is_followed } = remembered;
        let database = route.database.as_ref().map(|database| KeptDatabase {
            engine: database.engine,
            server: database.server,
            schema_version: database.schema_version,
            sealed: STANDARD.encode(database.sealed.as_bytes()),
            credential_version: database.credential_version,
        });
        Self {
            hostname: hostname.as_str().to_owned(),
            store: route.store_id,
            status: route.status,
            is_read_only: route.is_read_only,
            version: route.version,
            database,
            held: data.moment(*held),
            is_followed: *is_followed,
        }
    }

    /// Of what was sealed by us, all of it is well formed.
    fn remembered(self, held: Instant) -> Option<Remembered> {
        let database = match self.database {
            Some(database) => Some(DatabaseRoute {
                engine: database.engine,
                server: database.server,
                schema_version: database.schema_version,
                sealed: Sealed::from_bytes(STANDARD.decode(database.sealed).ok()?).ok()?,
                credential_version: database.credential_version,
            }),
            None => None,
        };
        let route = Route {
            store_id: self.store,
            status: self.status,
            is_read_only: self.is_read_only,
            version: self.version,
            database,
        };
        Some(Remembered {
            hostname: Hostname::parse(&self.hostname).ok()?,
            route: Arc::new(route),
            held,
            is_followed: false,
        })
    }
}

impl NodeData {
    /// What the process before this one knew and nothing has outdated, as far as it had heard.
    ///
    /// # Errors
    /// When the file cannot be read, or is not ours.
    pub fn load_routes(&self) -> io::Result<Vec<Remembered>> {
        let (mut routes, mut outdated, mut followed) = (Vec::new(), HashMap::<StoreId, i64>::new(), None);
        for value in read_sealed(&self.keys, &self.path(NAME))? {
            match value {
                Value::Routes(more) => routes.extend(more),
                Value::Outdated(stores) => {
                    for (store, version) in stores {
                        let floor = outdated.entry(store).or_insert(version);
                        *floor = version.max(*floor);
                    }
                }
                Value::Followed(until) => followed = Some(until),
            }
        }
        let (now, here) = (self.now(), Instant::now());
        let counts = |route: &KeptRoute| outdated.get(&route.store).is_none_or(|floor| route.version >= *floor);
        let held = |route: &KeptRoute| {
            let followed = followed.as_ref().filter(|_| route.is_followed).and_then(|until| until.age(&now));
            let age = route.held.age(&now).into_iter().chain(followed).min()?;
            // Uptime is known to the second.
            here.checked_sub(age + Duration::from_secs(1))
        };
        let remembered = |route: KeptRoute| {
            let held = held(&route)?;
            route.remembered(held)
        };
        Ok(routes.into_iter().filter(counts).filter_map(remembered).collect())
    }
}

/// Keeps the file true until the node shuts down.
pub async fn run(cx: Cx, data: Arc<NodeData>) {
    let news = cx.stores.news();
    let mut keeper =
        Keeper { cx, data, news, file: None, learned: 0, followed: None, at: Instant::now(), took: Duration::ZERO };
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let shutdown = keeper.cx.shutdown.clone();
    loop {
        let done = tokio::select! {
            () = shutdown.cancelled() => break,
            _ = ticks.tick() => keeper.look(false).await,
            heard = keeper.news.recv() => keeper.hear(heard).await,
        };
        keeper.count(done);
    }
    // The last word: what was heard is written, and as of when.
    let done = keeper.look(true).await;
    keeper.count(done);
}

struct Keeper {
    cx: Cx,
    data: Arc<NodeData>,
    news: Receiver<RouteNews>,
    /// What is true now, if anything is.
    file: Option<Open>,
    /// What the node had learned when that was begun.
    learned: u64,
    followed: Option<Instant>,
    /// When it was begun, and how long that took.
    at: Instant,
    took: Duration,
}

struct Open {
    file: SealedFile,
    /// How long it was when it was new.
    new_bytes: u64,
    /// The stores in it, and the oldest version of each.
    stores: HashMap<StoreId, i64>,
}

impl Open {
    fn append(&mut self, data: &NodeData, value: &Value) -> io::Result<()> {
        self.file.append(&data.keys, value)?;
        self.file.sync()
    }

    /// Of what is outdated, what this would still say.
    fn outdate(&mut self, data: &NodeData, news: &[RouteNews]) -> io::Result<()> {
        let says = |of: &&RouteNews| self.stores.get(&of.store_id).is_some_and(|version| *version < of.version);
        let outdated: Vec<_> = news.iter().filter(says).map(|of| (of.store_id, of.version)).collect();
        if outdated.is_empty() {
            return Ok(());
        }
        for (store, _) in &outdated {
            self.stores.remove(store);
        }
        let count = outdated.len() as u64;
        self.append(data, &Value::Outdated(outdated))?;
        metrics::counter!("tenantry_node_data_outdated_total").increment(count);
        Ok(())
    }
}

impl Keeper {
    /// Takes note of what is outdated.
    async fn hear(&mut self, heard: Result<RouteNews, RecvError>) -> io::Result<()> {
        let mut news = Vec::new();
        let is_whole = match heard {
            Ok(first) => {
                news.push(first);
                self.hear_more(&mut news)
            }
            Err(RecvError::Lagged(_)) => false,
            Err(RecvError::Closed) => true,
        };
        if !is_whole {
            return self.start_over().await;
        }
        let (Some(mut file), data) = (self.file.take(), Arc::clone(&self.data)) else { return Ok(()) };
        let (file, done) = blocking(move || {
            let done = file.outdate(&data, &news);
            (file, done)
        })
        .await?;
        match done {
            Ok(()) => self.file = Some(file),
            Err(error) => {
                self.data.remove(NAME)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// What else was heard by now. Whether that is all of it.
    fn hear_more(&mut self, news: &mut Vec<RouteNews>) -> bool {
        loop {
            match self.news.try_recv() {
                Ok(more) => news.push(more),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return true,
                Err(TryRecvError::Lagged(_)) => return false,
            }
        }
    }

    /// The file does not say what it should: nothing is better.
    async fn start_over(&mut self) -> io::Result<()> {
        self.file = None;
        self.data.remove(NAME)?;
        self.write().await
    }

    /// Brings the file up to date, if there is something to say.
    async fn look(&mut self, is_last: bool) -> io::Result<()> {
        // In this order: what is followed after a gap is not what was before it, and a gap is something learned.
        let followed = self.cx.stores.followed_until();
        let is_learned = self.cx.stores.learned() != self.learned;
        let is_long = self.file.as_ref().is_some_and(|open| open.file.bytes > open.new_bytes * 2 + SHORT);
        let is_time = is_last || self.at.elapsed() >= self.took * PART;
        if self.file.is_none() || ((is_learned || is_long) && is_time) {
            return self.write().await;
        }
        if is_learned || followed == self.followed {
            return Ok(());
        }
        let (Some(at), Some(mut file), data) = (followed, self.file.take(), Arc::clone(&self.data)) else {
            return Ok(());
        };
        self.followed = followed;
        let (file, done) = blocking(move || {
            let done = file.append(&data, &Value::Followed(data.moment(at)));
            (file, done)
        })
        .await?;
        // What could not be said is said by the next one; what is half written ends the file.
        match done {
            Ok(()) => self.file = Some(file),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Writes everything anew.
    async fn write(&mut self) -> io::Result<()> {
        self.at = Instant::now();
        self.learned = self.cx.stores.learned();
        self.followed = self.cx.stores.followed_until();
        let remembered = self.cx.stores.remembered();
        metrics::gauge!("tenantry_node_data_routes").set(remembered.len() as f64);
        let data = Arc::clone(&self.data);
        let writing = blocking(move || write_new(&data, &remembered));
        tokio::pin!(writing);
        let mut later = Vec::new();
        let new = loop {
            tokio::select! {
                new = &mut writing => break new?,
                heard = self.news.recv() => match heard {
                    Ok(of) => {
                        later.push(of);
                        if let Some(old) = &mut self.file && let Err(error) = old.outdate(&self.data, &[of]) {
                            self.file = None;
                            self.data.remove(NAME)?;
                            tracing::warn!("what the node knew of routes is gone: {error}");
                        }
                    }
                    Err(RecvError::Lagged(_)) => return self.give_up(),
                    Err(RecvError::Closed) => {}
                },
            }
        };
        if !self.hear_more(&mut later) {
            return self.give_up();
        }
        let data = Arc::clone(&self.data);
        let new = blocking(move || {
            let mut new = new?;
            new.outdate(&data, &later)?;
            new.file.sync()?;
            std::fs::rename(data.path(NEW_NAME), data.path(NAME))?;
            Ok::<_, io::Error>(new)
        })
        .await??;
        self.file = Some(new);
        self.took = self.at.elapsed();
        Ok(())
    }

    /// More was heard than can be remembered: the next look begins anew.
    fn give_up(&mut self) -> io::Result<()> {
        self.file = None;
        self.data.remove(NAME)
    }

    fn count(&self, done: io::Result<()>) {
        let is_kept = done.is_ok() && self.file.is_some();
        metrics::gauge!("tenantry_node_data_kept").set(f64::from(u8::from(is_kept)));
        if let Err(error) = done {
            tracing::warn!("what the node knows of routes cannot be kept for a restart: {error}");
        }
    }
}

fn write_new(data: &NodeData, remembered: &[Remembered]) -> io::Result<Open> {
    let mut file = SealedFile::create(&data.path(NEW_NAME))?;
    let mut stores = HashMap::new();
    for chunk in remembered.chunks(CHUNK) {
        let routes = chunk.iter().map(|one| KeptRoute::new(data, one)).collect();
        file.append(&data.keys, Value::Routes(routes))?;
        for one in chunk {
            let oldest = stores.entry(one.route.store_id).or_insert(one.route.version);
            *oldest = one.route.version.min(*oldest);
        }
    }
    let new_bytes = file.bytes;
    Ok(Open { file, new_bytes, stores })
}

/// Files wait for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}
