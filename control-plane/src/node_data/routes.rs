//! The routes that the node knows, written down as it learns of them.
//!
//! The file holds the routes as of a moment, and then what became known since: that older routes of a store do not count any more,
//! which is written at once; and up to when nothing else had changed, from where the next process reads the log of changes on. When
//! the node has learned of other routes, the file is written anew beside the old one, which takes no less note of changes meanwhile.
//! A file that cannot take note of them is removed.

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
use tokio_util::sync::CancellationToken;
use vault::Sealed;

use super::{Moment, NodeData, SealedFile, read_sealed};
use crate::cx::Cx;
use crate::directory::changes::Place;

const NAME: &str = "routes";
/// How often it is looked whether there is something to write. What is outdated is written at once.
const PERIOD: Duration = Duration::from_secs(5);
/// Writing everything takes at most this part of the time.
const PART: u32 = 20;
/// Routes of so many bytes are one sealed value.
const CHUNK: usize = 256 << 10;
/// What was appended may be so long, or as long as what it was appended to.
const SHORT: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
enum Value {
    Routes(Vec<KeptRoute>),
    /// Routes of these stores that are older do not count.
    Outdated(Vec<(StoreId, i64)>),
    /// Nothing else had changed by then, of what is followed; and where the log of changes is read on.
    Followed {
        until: Moment,
        horizon: i64,
    },
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
    fn new(remembered: &Remembered, held: Moment) -> Self {
        let Remembered { hostname, route, is_followed, .. } = remembered;
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
            held,
            is_followed: *is_followed,
        }
    }

    /// Its bytes, about.
    fn size(&self) -> usize {
        512 + self.database.as_ref().map_or(0, |database| database.sealed.len())
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

/// What the process before this one knew.
#[derive(Default)]
pub struct Known {
    /// What nothing had outdated, as far as it had heard.
    pub remembered: Vec<Remembered>,
    /// How far it had heard.
    pub place: Option<Place>,
}

impl NodeData {
    /// What the process before this one knew.
    ///
    /// # Errors
    /// When the file cannot be read, or is not ours.
    pub fn load_routes(&self) -> io::Result<Known> {
        let (mut routes, mut outdated, mut followed) = (Vec::new(), HashMap::<StoreId, i64>::new(), None);
        for value in read_sealed(self, NAME)? {
            match value {
                Value::Routes(more) => routes.extend(more),
                Value::Outdated(stores) => {
                    for (store, version) in stores {
                        let floor = outdated.entry(store).or_insert(version);
                        *floor = version.max(*floor);
                    }
                }
                Value::Followed { until, horizon } => followed = Some((until, horizon)),
            }
        }
        let (now, here) = (self.now(), Instant::now());
        let counts = |route: &KeptRoute| outdated.get(&route.store).is_none_or(|floor| route.version >= *floor);
        let held = |route: &KeptRoute| {
            let followed = followed.as_ref().filter(|_| route.is_followed).and_then(|(until, _)| until.age(&now));
            let age = route.held.age(&now).into_iter().chain(followed).min()?;
            here.checked_sub(age)
        };
        let remembered = |route: KeptRoute| {
            let held = held(&route)?;
            route.remembered(held)
        };
        let place = followed
            .as_ref()
            .and_then(|(until, horizon)| Some(Place { horizon: *horizon, read: here.checked_sub(until.age(&now)?)? }));
        Ok(Known { remembered: routes.into_iter().filter(counts).filter_map(remembered).collect(), place })
    }
}

/// Keeps the file true until `end`, which comes when nothing is heard any more.
/// `news` is heard since before anything was remembered.
pub async fn run(cx: Cx, data: Arc<NodeData>, news: Receiver<RouteNews>, end: CancellationToken) {
    let now = Instant::now();
    let mut keeper =
        Keeper { cx, data, news, file: None, began: now, took: Duration::ZERO, disk: Disk::Before, told: None };
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let done = tokio::select! {
            () = end.cancelled() => break,
            _ = ticks.tick() => keeper.look(false).await,
            heard = keeper.news.recv() => keeper.hear(heard).await,
        };
        keeper.settle(done).await;
    }
    let done = keeper.look(true).await;
    keeper.settle(done).await;
}

/// Of the file on the disk either everything that was heard is in it, or it is removed: nothing is better than what is not true.
struct Keeper {
    cx: Cx,
    data: Arc<NodeData>,
    news: Receiver<RouteNews>,
    /// The file on the disk, if it is this process's and has everything in it.
    file: Option<Open>,
    /// When it was begun to be written anew, and how long that took.
    began: Instant,
    took: Duration,
    /// What is on the disk.
    disk: Disk,
    /// What was last said of what goes wrong.
    told: Option<String>,
}

/// What is in the file's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    /// This process's file, or none.
    Clear,
    /// That of the process before it, which knows nothing of what is heard now.
    Before,
    /// One that does not say everything.
    Wrong,
}

struct Open {
    file: SealedFile,
    /// How long it was when it was new.
    new_bytes: u64,
    /// What the node had learned when it was begun.
    learned: u64,
    /// Up to when it says that routes were followed.
    followed: Option<Followed>,
    /// The stores in it, and the oldest version of each that counts.
    stores: HashMap<StoreId, i64>,
}

/// Up to when changes were followed, and where the log is read on from there, or from later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Followed {
    until: Instant,
    horizon: i64,
}

impl Open {
    /// Says what is outdated and what was followed, as far as it does not say so by now.
    fn append(&mut self, data: &NodeData, news: &[RouteNews], followed: Option<Followed>) -> io::Result<()> {
        let mut outdated = HashMap::new();
        for of in news {
            if let Some(version) = self.stores.get_mut(&of.store_id).filter(|version| **version < of.version) {
                *version = of.version;
                outdated.insert(of.store_id, of.version);
            }
        }
        if !outdated.is_empty() {
            let count = outdated.len() as u64;
            self.file.append(&data.keys, Value::Outdated(outdated.into_iter().collect()))?;
            self.file.sync()?;
            metrics::counter!("tenantry_node_data_outdated_total").increment(count);
        }
        if let Some(Followed { until, horizon }) = followed.filter(|_| followed != self.followed) {
            self.followed = followed;
            self.file.append(&data.keys, Value::Followed { until: data.moment(until), horizon })?;
            self.file.sync()?;
        }
        Ok(())
    }
}

impl Keeper {
    /// Takes note of what is outdated.
    async fn hear(&mut self, heard: Result<RouteNews, RecvError>) -> io::Result<()> {
        let news = self.all_of(&heard)?;
        self.append(news, None).await
    }

    fn all_of(&mut self, heard: &Result<RouteNews, RecvError>) -> io::Result<Vec<RouteNews>> {
        let mut news = Vec::new();
        match heard {
            Ok(first) => news.push(*first),
            Err(RecvError::Lagged(_)) => return Err(self.too_much()),
            Err(RecvError::Closed) => return Ok(news),
        }
        self.hear_more(&mut news)?;
        Ok(news)
    }

    /// What else was heard by now.
    fn hear_more(&mut self, news: &mut Vec<RouteNews>) -> io::Result<()> {
        loop {
            match self.news.try_recv() {
                Ok(more) => news.push(more),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return Ok(()),
                Err(TryRecvError::Lagged(_)) => return Err(self.too_much()),
            }
        }
    }

    fn too_much(&mut self) -> io::Error {
        self.disk = Disk::Wrong;
        io::Error::other("more has changed than can be written down one by one")
    }

    /// To be asked before it is looked what was heard: whatever was followed by then is heard by then.
    fn followed(&self) -> Option<Followed> {
        let until = self.cx.stores.followed_until()?;
        Some(Followed { until, horizon: self.cx.log_place.get()?.horizon })
    }

    async fn append(&mut self, news: Vec<RouteNews>, followed: Option<Followed>) -> io::Result<()> {
        let data = Arc::clone(&self.data);
        let Some(mut open) = self.file.take() else {
            return if news.is_empty() || self.disk == Disk::Clear { Ok(()) } else { self.discard().await };
        };
        let appending = move || {
            if !data.path(NAME).try_exists()? {
                return Err(io::Error::other("the file is gone"));
            }
            open.append(&data, &news, followed).map(|()| open)
        };
        match blocking(appending).await.flatten() {
            Ok(open) => self.file = Some(open),
            Err(error) => {
                self.discard().await?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// What is on the disk is not true any more.
    async fn discard(&mut self) -> io::Result<()> {
        (self.file, self.disk) = (None, Disk::Wrong);
        let data = Arc::clone(&self.data);
        blocking(move || data.remove(NAME)).await??;
        self.disk = Disk::Clear;
        Ok(())
    }

    /// Brings the file up to date.
    async fn look(&mut self, is_last: bool) -> io::Result<()> {
        // In this order: a gap is something learned.
        let followed = self.followed();
        let mut news = Vec::new();
        self.hear_more(&mut news)?;
        let learned = self.cx.stores.learned();
        let is_time = is_last || self.began.elapsed() >= self.took * PART;
        match &self.file {
            Some(open) if open.learned == learned => {
                let is_long = open.file.bytes > open.new_bytes * 2 + SHORT;
                self.append(news, followed).await?;
                if is_long && is_time { self.write().await } else { Ok(()) }
            }
            Some(_) if !is_time => self.append(news, None).await,
            _ => {
                self.append(news, None).await?;
                self.write().await
            }
        }
    }

    /// Writes everything anew, beside the file that there is.
    async fn write(&mut self) -> io::Result<()> {
        self.began = Instant::now();
        // Before what is remembered: what comes meanwhile is learned.
        let (learned, followed) = (self.cx.stores.learned(), self.followed());
        let (stores, data) = (self.cx.stores.clone(), Arc::clone(&self.data));
        let writing = blocking(move || Open::create(&data, &stores.remembered(), learned));
        tokio::pin!(writing);
        let (mut later, mut noted) = (Vec::new(), Ok(()));
        // It is waited for whatever happens: no two write at one time.
        let new = loop {
            tokio::select! {
                new = &mut writing => break new,
                heard = self.news.recv(), if noted.is_ok() => {
                    noted = self.note(heard, &mut later).await;
                    if noted.is_err() {
                        self.discard().await?;
                    }
                }
            }
        };
        noted?;
        let mut new = new??;
        let (data, count) = (Arc::clone(&self.data), new.routes);
        let placing = move || {
            new.open.append(&data, &later, followed)?;
            new.open.file.sync()?;
            new.open.file.place(&data)?;
            data.sync()?;
            Ok::<_, io::Error>(new.open)
        };
        self.file = Some(blocking(placing).await??);
        self.disk = Disk::Clear;
        self.took = self.began.elapsed();
        metrics::gauge!("tenantry_node_data_routes").set(count as f64);
        Ok(())
    }

    /// Until it is replaced, the file that there is says what is outdated, and so will the new one.
    async fn note(&mut self, heard: Result<RouteNews, RecvError>, later: &mut Vec<RouteNews>) -> io::Result<()> {
        let news = self.all_of(&heard)?;
        later.extend_from_slice(&news);
        self.append(news, None).await
    }

    /// What went wrong leaves no file, but for that of the process before this one while nothing was heard that is not in it: the
    /// next look writes it anew, if that can be.
    async fn settle(&mut self, done: io::Result<()>) {
        let mut said = done.as_ref().err().map(ToString::to_string);
        let is_lost = done.is_err() && self.disk != Disk::Before;
        if (is_lost || self.disk == Disk::Wrong)
            && let Err(error) = self.discard().await
        {
            said = Some(format!("it cannot even be removed: {error}"));
        }
        metrics::gauge!("tenantry_node_data_kept").set(f64::from(u8::from(self.file.is_some())));
        if let Some(why) = &said
            && self.told != said
        {
            tracing::warn!("what the node knows of routes is not kept for a restart: {why}");
        }
        if said.is_some() || self.file.is_some() {
            self.told = said;
        }
    }
}

/// A file that is not in its place yet.
struct New {
    open: Open,
    routes: usize,
}

impl Open {
    fn create(data: &NodeData, remembered: &[Remembered], learned: u64) -> io::Result<New> {
        let (now, here) = (data.now(), Instant::now());
        let mut file = SealedFile::create(data, NAME)?;
        let (mut stores, mut routes, mut bytes) = (HashMap::new(), Vec::new(), 0);
        for one in remembered {
            let route = KeptRoute::new(one, now.clone().before(here.saturating_duration_since(one.held)));
            bytes += route.size();
            routes.push(route);
            let oldest = stores.entry(one.route.store_id).or_insert(one.route.version);
            *oldest = one.route.version.min(*oldest);
            if bytes >= CHUNK {
                file.append(&data.keys, Value::Routes(std::mem::take(&mut routes)))?;
                bytes = 0;
            }
        }
        file.append(&data.keys, Value::Routes(routes))?;
        let new_bytes = file.bytes;
        Ok(New { open: Open { file, new_bytes, learned, followed: None, stores }, routes: remembered.len() })
    }
}

/// Files wait for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}
