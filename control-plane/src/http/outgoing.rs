//! How this process calls the services of others: the one HTTP client, and what every call of one has in common.

use std::time::Duration;

use reqwest::Url;

/// An HTTP client: no redirects, no proxy of the environment's, ring alone, and the roots that every browser knows.
#[expect(clippy::disallowed_methods, reason = "the one site that makes an HTTP client")]
pub fn client(connect_timeout: Duration) -> Result<reqwest::Client, reqwest::Error> {
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(connect_timeout)
        .pool_max_idle_per_host(8)
        .pool_idle_timeout(Duration::from_secs(30))
        .user_agent(concat!("tenantry/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// The body, cut off once it is longer than `limit`.
pub async fn read_body(response: &mut reqwest::Response, limit: usize) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            break;
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What went wrong, without the address that it went wrong at.
pub fn without_url(error: reqwest::Error) -> String {
    super::errors::chain(&error.without_url())
}

/// One part of a path: what somebody sent as an id cannot lead elsewhere.
pub fn segment(id: &str) -> String {
    percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC).to_string().replace("%5F", "_")
}

/// Whether nobody on the way can read it.
pub fn is_https_or_loopback(url: &Url) -> bool {
    match (url.scheme(), url.host()) {
        ("https", Some(_)) => true,
        ("http", Some(url::Host::Domain(name))) => name == "localhost" || name.ends_with(".localhost"),
        ("http", Some(url::Host::Ipv4(address))) => address.is_loopback(),
        ("http", Some(url::Host::Ipv6(address))) => address.is_loopback(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use reqwest::Url;

    use super::{is_https_or_loopback, segment};

    #[test]
    fn plain_http_leads_to_loopback_only() {
        for good in [
            "https://api.stripe.com",
            "http://127.0.0.1:8420",
            "http://localhost:1",
            "http://[::1]:8420",
            "http://a.localhost",
        ] {
            assert!(is_https_or_loopback(&Url::parse(good).expect("a URL")), "{good}");
        }
        for bad in [
            "http://api.stripe.com",
            "http://10.0.0.1",
            "http://localhost.example.com",
            "ftp://localhost",
            "file:///etc",
        ] {
            assert!(!is_https_or_loopback(&Url::parse(bad).expect("a URL")), "{bad}");
        }
    }

    #[test]
    fn an_id_stays_one_part_of_the_path() {
        assert_eq!(segment("cs_test_1a"), "cs_test_1a");
        assert_eq!(segment("../customers?x"), "%2E%2E%2Fcustomers%3Fx");
    }
}
