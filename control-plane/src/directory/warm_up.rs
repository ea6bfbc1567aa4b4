//! After a start the stores that are asked for most have their route and a connection before somebody needs them.

use std::time::Duration;

use futures_util::StreamExt as _;
use kernel::Hostname;

use super::db;
use crate::charges::REQUESTS;
use crate::cx::Cx;
use crate::http::errors::chain;
use crate::master::MasterError;

/// Stores that are looked at at one time: requests come first.
const AT_ONCE: usize = 4;
/// Today's and yesterday's requests say who is asked for.
const DAYS: i64 = 1;
const READ_LIMIT: Duration = Duration::from_secs(10);

/// Warms so many stores as the configuration says, and ends.
pub async fn run(cx: Cx) {
    let busiest = async {
        let wanted = i64::from(cx.ops().limits.warm_up_stores);
        let since = cx.clock.now().date_naive() - chrono::Days::new(DAYS.unsigned_abs());
        let names = db::busiest_hostnames(&mut *cx.master.acquire().await?, REQUESTS, since, wanted).await?;
        Ok::<_, MasterError>(names)
    };
    let names = match tokio::time::timeout(READ_LIMIT, busiest).await {
        Ok(Ok(names)) => names,
        Ok(Err(error)) => return tracing::warn!(error = chain(&error), "nothing was warmed: master does not answer"),
        Err(_) => return tracing::warn!("nothing was warmed: master does not answer in time"),
    };
    let count = names.len();
    let warming = futures_util::stream::iter(names).map(|name| {
        let cx = cx.clone();
        async move { warm(&cx, &name).await }
    });
    let warming = warming.buffer_unordered(AT_ONCE).filter(|is_warm| std::future::ready(*is_warm)).count();
    if let Some(warm) = cx.shutdown.run_until_cancelled(warming).await
        && count > 0
    {
        tracing::info!("{warm} of the {count} most used stores have a connection");
    }
}

/// Opens a connection to a store, if no more than half of what may be open at its server is. Whether one is.
async fn warm(cx: &Cx, name: &str) -> bool {
    let Ok(name) = Hostname::parse(name) else { return false };
    let Ok(route) = cx.stores.resolve_host(&name).await else { return false };
    let server = route.database.as_ref().and_then(|database| database.server);
    let load = cx.stores.server_loads().into_iter().find(|load| Some(load.server_id) == server);
    // Without a share of the server yet, it is the first to ask for one.
    if load.is_some_and(|load| load.limit > 0 && (load.waiting > 0 || load.open >= load.limit / 2)) {
        return false;
    }
    let Ok(lease) = cx.stores.lease(&route).await else { return false };
    lease.acquire().await.is_ok()
}
