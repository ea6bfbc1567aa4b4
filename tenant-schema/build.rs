//! New migration files are invisible to cargo without this.

fn main() {
    println!("cargo:rerun-if-changed=../migrations-tenant");
}
