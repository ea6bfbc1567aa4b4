//! New migration files are invisible to cargo until somebody says so.

fn main() {
    println!("cargo:rerun-if-changed=../migrations-master");
}
