// Answers each line of JSON with one, by npm's `stripe` and `standardwebhooks`: `{"ok": ...}` or `{"error": ...}`. Ends with
// its input.
'use strict';

const { Webhook, WebhookVerificationError } = require('standardwebhooks');
const Stripe = require('stripe');

const { webhooks, errors } = new Stripe('sk_test_that_calls_nobody');

const answers = {
    // The header that signs a body.
    sign: ({ ask, ...vector }) => webhooks.generateTestHeaderString(vector),
    // What an event's body says, if it is signed as it should be.
    construct: ({ payload, header, secret, tolerance }) => webhooks.constructEvent(payload, header, secret, tolerance),
    // What a message of Standard Webhooks says, if it is signed as it should be; `now` is the receiver's time, in seconds.
    verify: ({ secret, body, headers, now }) => at(now, () => new Webhook(secret).verify(body, headers)),
    // A call of the payment provider's API, such as `checkout.sessions.create`.
    call: async ({ client, call, args }) => {
        const { key, ...config } = client;
        const path = call.split('.');
        const method = path.pop();
        const resource = path.reduce((within, name) => within[name], new Stripe(key, config));
        const result = await resource[method](...args);
        const { statusCode, headers, idempotencyKey, requestId, apiVersion } = result.lastResponse;
        const replayed = headers['idempotent-replayed'] === 'true';
        return { result, response: { statusCode, idempotencyKey, requestId, apiVersion, replayed } };
    },
    // Every item of a list, over all its pages.
    all: async ({ client, call, args, limit }) => {
        const { key, ...config } = client;
        const path = call.split('.');
        const resource = path.reduce((within, name) => within[name], new Stripe(key, config));
        return resource.list(...args).autoPagingToArray({ limit });
    },
};

// What `work` answers when it is done at another time.
function at(seconds, work) {
    const clock = Date.now;
    Date.now = () => seconds * 1000;
    try {
        return work();
    } finally {
        Date.now = clock;
    }
}

// What somebody who uses the library can tell of an error. One that is not the library's is a fault of this program.
function told(error) {
    if (error instanceof WebhookVerificationError) {
        return { type: error.name, message: error.message };
    }
    if (!(error instanceof errors.StripeError)) {
        throw error;
    }
    const { type, message, code, param, statusCode, decline_code, requestId, payment_intent } = error;
    return { type, message, code, param, statusCode, decline_code, requestId, payment_intent: payment_intent?.id };
}

(async () => {
    let rest = '';
    process.stdin.setEncoding('utf8');
    // Not by `readline`, for which more than a newline ends a line.
    for await (const chunk of process.stdin) {
        const lines = (rest + chunk).split('\n');
        rest = lines.pop();
        for (const line of lines) {
            const question = JSON.parse(line);
            let answer;
            try {
                answer = { ok: await answers[question.ask](question) };
            } catch (error) {
                answer = { error: told(error) };
            }
            process.stdout.write(`${JSON.stringify(answer)}\n`);
        }
    }
})();
