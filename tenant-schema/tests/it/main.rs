//! What happens inside one store's database, on a real private PostgreSQL.

#[cfg(test)]
mod catalog;
#[cfg(test)]
mod checkout;
#[cfg(test)]
mod import;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod support;
