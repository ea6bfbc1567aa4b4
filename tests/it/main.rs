//! The one binary of integration tests; `../README.md` says how they are written.

#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped fails the test")]
#![expect(clippy::disallowed_methods, reason = "what a test spawns lives as long as its runtime")]

/// Runs each of these tests with stores on every engine. What stands before a name, such as `#[ignore = "soak"]`, is said of both.
macro_rules! on_each_engine {
    ($($(#[$attribute:meta])* $test:ident)+) => {$(
        mod $test {
            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread")]
            async fn postgresql() {
                super::$test(kernel::Engine::Postgresql).await;
            }

            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread")]
            async fn mariadb() {
                super::$test(kernel::Engine::Mysql).await;
            }
        }
    )+};
}

mod ailing;
mod authorization;
mod bad_input;
mod brought;
mod cards;
mod change_log;
mod charges;
mod checkout_pages;
mod clients;
mod commands;
mod conformance;
mod copies;
mod credentials;
mod credits;
mod deaths;
mod deliveries;
mod described;
mod doctor;
mod doctor_refusals;
mod doctor_strings;
mod doctor_tls;
mod existing;
mod failovers;
mod faults;
mod hammer;
mod hosts;
mod identity;
mod imports;
mod ledger;
mod limits;
mod localstripe;
mod localstripe_flow;
mod main_path;
mod mariadb;
mod master_down;
mod migrations;
mod moves;
mod node_views;
mod ops_payments;
mod outages;
mod poolers;
mod prints;
mod processes;
mod provisioning;
mod purchases;
mod reconciliation;
mod refunds;
mod restarts;
mod retellings;
mod scenes;
mod sealed;
mod secrets;
mod shares;
mod signatures;
mod soak;
mod storefront;
mod stores;
mod supabase;
mod supabase_flow;
mod supabase_secrets;
mod supabase_tokens;
mod tariffs;
mod told;
mod top_ups;
mod unanswered;
mod unwinding;
mod versions;
mod visits;
mod webhooks;
