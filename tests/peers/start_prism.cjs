// Runs Prism as it is, as a proxy that judges what passes through it, on a free port of this machine, for no longer than somebody
// holds the other end of its input. Arguments: the description, and where the judged one answers.
const net = require('net');
const path = require('path');
const [description, upstream] = process.argv.slice(2);
process.stdin.on('end', () => process.exit(0)).resume();
const probe = net.createServer();
probe.listen(0, '127.0.0.1', () => {
    const { port } = probe.address();
    probe.close(() => {
        process.argv = [process.argv[0], 'prism', 'proxy', description, upstream, '--errors', '-h', '127.0.0.1', '-p', `${port}`];
        console.log(`port ${port}`);
        require(path.join(path.dirname(require.resolve('@stoplight/prism-cli/package.json')), 'dist/index.js'));
    });
});
