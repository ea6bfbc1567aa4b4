//! The traps that the system before fell into (E1-E8), one test or more each.

use kernel::{ServerId, StoreId};
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use secrecy::{ExposeSecret as _, SecretString};

use crate::{Aad, KeyError, KeyRing, KeyRingError, OpenError, Owner, Purpose, Sealed, generate_key};

fn store(number: u8) -> StoreId {
    "sto_00000000000000000000000001".replace("0001", &format!("000{number}")).parse().expect("one digit keeps the form")
}

fn place() -> Aad {
    Aad::for_store(store(1), Purpose::DatabaseCredential, 1)
}

fn ring(text: &str) -> KeyRing {
    KeyRing::parse(text).expect("the test's ring is well formed")
}

fn key() -> String {
    generate_key().expose_secret().to_owned()
}

#[test]
fn e1_a_value_names_its_key_and_keys_rotate() {
    let (old_key, new_key) = (key(), key());
    let old = ring(&format!("k1:{old_key}"));
    let both = ring(&format!("k2:{new_key}, k1:{old_key}"));
    let new = ring(&format!("k2:{new_key}"));

    let before = old.seal(b"secret", &place());
    assert_eq!(before.key_id(), "k1");
    assert_eq!(*both.open(&before, &place()).unwrap(), b"secret");
    assert!(!both.is_current(&before));

    let after = both.seal(&both.open(&before, &place()).unwrap(), &place());
    assert_eq!(after.key_id(), "k2");
    assert!(both.is_current(&after));
    assert_eq!(*new.open(&after, &place()).unwrap(), b"secret");
    assert_eq!(new.open(&before, &place()), Err(OpenError::UnknownKey { kid: "k1".into() }));
}

#[test]
fn e1_a_key_used_alone_can_stand_in_a_ring_later() {
    let (alone, new_key) = (key(), key());
    let sealed = KeyRing::single(&alone).unwrap().seal(b"secret", &place());
    assert_eq!(*ring(&format!("2026:{new_key},{alone}")).open(&sealed, &place()).unwrap(), b"secret");
    let named = ring(&format!("2026:{new_key},{}:{alone}", sealed.key_id()));
    assert_eq!(*named.open(&sealed, &place()).unwrap(), b"secret");
}

#[test]
fn e1_the_key_id_itself_is_authenticated() {
    let same = key();
    let sealed = ring(&format!("k1:{same}")).seal(b"secret", &place());
    let mut renamed = sealed.as_bytes().to_vec();
    renamed[3] = b'2';
    let renamed = Sealed::from_bytes(renamed).unwrap();
    assert_eq!(renamed.key_id(), "k2");
    assert_eq!(ring(&format!("k2:{same}")).open(&renamed, &place()), Err(OpenError::Damaged));
}

#[test]
fn e2_a_value_moved_to_another_place_does_not_open() {
    let ring = ring(&key());
    let sealed = ring.seal(b"secret", &place());
    let same_bits = Owner::Server(ServerId::from_uuid(store(1).as_uuid()));
    for elsewhere in [
        Aad { owner: Owner::Store(store(2)), ..place() },
        Aad { owner: same_bits, ..place() },
        Aad { purpose: Purpose::ServerCredential, ..place() },
        Aad { purpose: Purpose::ServiceToken, ..place() },
        Aad { version: 2, ..place() },
        Aad { version: i32::MIN, ..place() },
    ] {
        assert_eq!(ring.open(&sealed, &elsewhere), Err(OpenError::Damaged), "{elsewhere:?}");
    }
    assert!(ring.open(&sealed, &place()).is_ok());
}

#[test]
fn e3_a_shortened_tag_never_opens() {
    let ring = ring(&key());
    for secret in [&b""[..], b"s", b"a longer secret than one block of the cipher"] {
        let sealed = ring.seal(secret, &place());
        let bytes = sealed.as_bytes();
        for len in 0..bytes.len() {
            if let Ok(short) = Sealed::from_bytes(&bytes[..len]) {
                assert_eq!(ring.open(&short, &place()), Err(OpenError::Damaged), "{len} bytes");
            }
        }
    }
    let empty = ring.seal(b"", &place());
    for cut in 1..=16 {
        let bytes = &empty.as_bytes()[..empty.as_bytes().len() - cut];
        assert!(Sealed::from_bytes(bytes).is_err(), "a tag of {} bytes is no tag", 16 - cut);
    }
}

#[test]
fn e4_any_bytes_can_be_sealed() {
    let ring = ring(&key());
    for secret in [&b""[..], br#"{"engine":"mysql","password":null}"#, &[0, 159, 146, 150], &[7; 100_000]] {
        assert_eq!(*ring.open(&ring.seal(secret, &place()), &place()).unwrap(), secret);
    }
    let text = SecretString::from("pässword");
    let sealed = ring.seal_text(&text, &place());
    assert_eq!(ring.open_text(&sealed, &place()).unwrap().expose_secret(), "pässword");
    assert!(matches!(ring.open_text(&ring.seal(&[159], &place()), &place()), Err(OpenError::Damaged)));
}

#[test]
fn e6_what_was_opened_is_wiped_when_dropped() {
    fn wiped<T: zeroize::ZeroizeOnDrop>(_: Option<T>) {}
    let ring = ring(&key());
    wiped(ring.open(&ring.seal(b"secret", &place()), &place()).ok());
    wiped::<aes_gcm::Aes256Gcm>(None);
}

#[test]
fn e7_a_bad_ring_is_refused_with_its_entry_and_without_its_value() {
    let good = key();
    let entry = |entry, reason| Err(KeyRingError::Entry { entry, reason });
    let short = "c2hvcnQ=";
    let zero = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for (text, wanted) in [
        (String::new(), Err(KeyRingError::Empty)),
        ("  ".to_owned(), Err(KeyRingError::Empty)),
        (format!("a:{good},"), entry(2, KeyError::Length)),
        (format!("a:{good},b:{short}"), entry(2, KeyError::Length)),
        (format!("a:{zero}"), entry(1, KeyError::Weak)),
        (format!("a:{good},a:{}", key()), entry(2, KeyError::DuplicateId)),
        (format!("a b:{good}"), entry(1, KeyError::Id)),
        (format!(":{good}"), entry(1, KeyError::Id)),
        (format!("{}:{good}", "k".repeat(33)), entry(1, KeyError::Id)),
        ("a:not base64!".to_owned(), entry(1, KeyError::Encoding)),
        (format!("a:{good}{good}"), entry(1, KeyError::Encoding)),
    ] {
        let found = KeyRing::parse(&text).map(|_| ());
        assert_eq!(found, wanted, "{text:?}");
        if let Err(error) = found {
            let said = format!("{error} {error:?}");
            assert!(!said.contains(&good) && !said.contains(short) && !said.contains(zero), "{said}");
        }
    }
    assert_eq!(KeyRing::single(zero).map(|_| ()), entry(1, KeyError::Weak));
    assert!(KeyRing::single(good.trim_end_matches('=')).is_ok());
}

#[test]
fn e7_every_seal_draws_a_new_nonce() {
    let ring = ring(&key());
    let (one, two) = (ring.seal(b"secret", &place()), ring.seal(b"secret", &place()));
    assert_ne!(one.as_bytes(), two.as_bytes());
}

#[test]
fn e8_debug_shows_no_secret_and_no_bytes() {
    let secret_key = key();
    let ring = ring(&format!("k1:{secret_key}"));
    let sealed = ring.seal(b"open sesame", &place());
    assert_eq!(format!("{ring:?}"), r#"["k1"]"#);
    assert_eq!(format!("{sealed:?}"), "Sealed(..)");
    assert!(!sealed.as_bytes().windows(4).any(|part| part == b"open"));
    assert!(!format!("{:?}", generate_key()).contains('='));
}

proptest! {
    #[test]
    fn what_was_sealed_opens(secret in proptest::collection::vec(any::<u8>(), 0..300), version in any::<i32>()) {
        let ring = ring(&key());
        let aad = Aad { version, ..place() };
        let stored = ring.seal(&secret, &aad).as_bytes().to_vec();
        prop_assert_eq!(&*ring.open(&Sealed::from_bytes(stored).unwrap(), &aad).unwrap(), &secret);
    }

    #[test]
    fn e5_no_bytes_make_it_panic_or_open(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        if let Ok(sealed) = Sealed::from_bytes(bytes) {
            prop_assert!(ring(&key()).open(&sealed, &place()).is_err());
        }
    }

    #[test]
    fn e5_no_bytes_behind_a_good_header_open(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        let ring = ring(&format!("k1:{}", key()));
        let mut whole = vec![1, 2, b'k', b'1'];
        whole.extend_from_slice(&bytes);
        if let Ok(sealed) = Sealed::from_bytes(whole) {
            prop_assert_eq!(ring.open(&sealed, &place()), Err(OpenError::Damaged));
        }
    }

    #[test]
    fn one_changed_bit_never_opens(place_of_bit in any::<usize>()) {
        let ring = ring(&key());
        let mut bytes = ring.seal(b"secret", &place()).as_bytes().to_vec();
        let bit = place_of_bit % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(sealed) = Sealed::from_bytes(bytes) {
            prop_assert!(ring.open(&sealed, &place()).is_err());
        }
    }

    #[test]
    fn no_text_makes_the_ring_parser_panic(text in "\\PC{0,80}") {
        let _ = KeyRing::parse(&text);
        let _ = KeyRing::single(&text);
    }
}
