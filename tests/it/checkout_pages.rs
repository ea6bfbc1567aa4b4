//! What a buyer sees on pages: ours after Checkout, and those of the test provider.

use devkit::payments::Checkout;
use http::Method;
use integration_tests::{Client, eventually};

use crate::purchases::{Order, Shop};

#[tokio::test(flavor = "multi_thread")]
async fn the_page_after_checkout_says_how_much_of_it_repaid_a_debt() {
    let shop = Shop::open().await;
    let page = async |order: &Order| shop.app.api().get(&order.success()).await.text();
    let first = shop.pay("a", "starter").await;
    assert!(page(&first).await.contains("500 credits are in your account."));
    shop.spend("all", 500).await;
    // Money goes back whose credits are spent.
    shop.provider.refund(&shop.intent(&first), 1000).unwrap();
    eventually("the debt", || async { (shop.amounts().await == [0, 0, 200]).then_some(()) }).await;
    let second = shop.pay("b", "starter").await;
    let said = page(&second).await;
    let wanted = "You have bought 500 credits. 200 of them have repaid what was owed; 300 are in your account.";
    assert!(said.contains(wanted), "{said}");
    assert_eq!(shop.amounts().await, [300, 0, 0]);
    // The first one's stays what it was.
    assert!(page(&first).await.contains("500 credits are in your account."));
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_whose_money_comes_later_is_ended_by_a_button_of_the_test_provider() {
    let shop = Shop::open().await;
    let provider = Client::new(shop.provider.address(), "localhost");
    let path = |order: &Order| format!("/c/pay/{}", order.session);
    let press = async |order: &Order, button: &str| {
        let form = format!("do={button}");
        provider.send_bytes(Method::POST, &path(order), "application/x-www-form-urlencoded", form).await
    };
    let arrives = shop.order("arrives", "starter").await;
    // Nothing is on its way yet.
    assert_eq!(press(&arrives, "arrive").await.status, 409);
    assert!(!provider.get(&path(&arrives)).await.text().contains("value=\"arrive\""));
    assert_eq!(press(&arrives, "pay-later").await.status, 303);
    shop.becomes(&arrives, "processing").await;
    assert!(provider.get("/").await.text().contains("its money is on its way"));
    let shown = provider.get(&path(&arrives)).await.text();
    assert!(shown.contains("value=\"arrive\"") && shown.contains("value=\"return\""), "{shown}");
    assert!(press(&arrives, "arrive").await.text().contains("The money has arrived"));
    shop.becomes(&arrives, "completed").await;
    assert!(!provider.get(&path(&arrives)).await.text().contains("value=\"arrive\""));
    assert!(!provider.get("/").await.text().contains("its money is on its way"));
    assert_eq!(press(&arrives, "return").await.status, 409);

    let fails = shop.order("fails", "starter").await;
    shop.provider.checkout(&fails.session, Checkout::PayLater).unwrap();
    shop.becomes(&fails, "processing").await;
    assert!(press(&fails, "return").await.text().contains("The payment has failed"));
    shop.becomes(&fails, "failed").await;
    assert_eq!(shop.amounts().await, [500, 0, 0]);
}
