//! HTTP of the connection doctor.

use axum::Extension;
use axum::extract::State;
use kernel::StoreId;
use problem::{Json, Problem, ProblemBody};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Report;
use crate::cx::Cx;
use crate::http::auth::{OwnerOf, Person};
use crate::http::authority::ClientAddress;
use crate::provisioning::routes::ConnectBody;
use crate::stores::Store;

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new().routes(routes!(database_test)).routes(routes!(store_database_test))
}

/// Test a database
///
/// Before any store exists. Takes what connects a store to a database of yours, and answers with a checklist of what was found,
/// in which every line that failed says why and what to do; a connection that is not understood is such a line, too. Nothing is
/// changed there and nothing is kept here. Only public addresses are called, unless the installation allows others, and whoever
/// tests often has to wait.
#[utoipa::path(post, path = "/api/databases/test", tag = "stores", operation_id = "database_test", security(("bearer" = [])),
    request_body = ConnectBody,
    responses((status = 200, body = Report), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 422, body = ProblemBody), (status = 429, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn database_test(
    Person(by): Person,
    Extension(ClientAddress(address)): Extension<ClientAddress>,
    State(cx): State<Cx>,
    Json(body): Json<ConnectBody>,
) -> Result<Json<Report>, Problem> {
    let _permit = cx.database_tests.admit(by.user.id, address)?;
    let target = body.read_brought()?;
    Ok(Json(super::examine(cx.ops(), target).await))
}

/// Test a store's database
///
/// Without a body the store's own, as it is connected now; of a managed one nothing is told about its server. With a body, as for
/// connecting a database, the one that it names, and whether it holds this very store. Otherwise as `POST /api/databases/test`.
#[utoipa::path(post, path = "/api/stores/{id}/database/test", tag = "stores", operation_id = "store_database_test", security(("bearer" = [])),
    params(("id" = StoreId, Path)), request_body = Option<ConnectBody>,
    responses((status = 200, body = Report), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 422, body = ProblemBody),
        (status = 429, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn store_database_test(
    owner: OwnerOf<Store>,
    Extension(ClientAddress(address)): Extension<ClientAddress>,
    State(cx): State<Cx>,
    body: Option<Json<ConnectBody>>,
) -> Result<Json<Report>, Problem> {
    let _permit = cx.database_tests.admit(owner.by.user.id, address)?;
    let candidate = match body.map(|Json(body)| body).filter(|body| !body.is_empty()) {
        Some(body) => Some(body.read_brought()?),
        None => None,
    };
    Ok(Json(super::examine_store(cx.ops(), owner.store.id, candidate).await?))
}
