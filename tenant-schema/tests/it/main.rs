//! What happens inside one store's database, on real servers of our own.

/// Runs each of these tests on every engine.
#[cfg(test)]
macro_rules! on_each_engine {
    ($($test:ident)+) => {$(
        mod $test {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgresql() {
                super::$test(kernel::Engine::Postgresql).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn mariadb() {
                super::$test(kernel::Engine::Mysql).await;
            }
        }
    )+};
}

#[cfg(test)]
mod catalog;
#[cfg(test)]
mod checkout;
#[cfg(test)]
mod import;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod parts;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod support;
