// Serves one file that can only be read, by fuse-native, which uses libfuse 2: hello.js MOUNTPOINT.
const Fuse = require('fuse-native')

const content = Buffer.from('Hello World!\n')
const attributes = (mode, size) => ({ mtime: new Date(), atime: new Date(), ctime: new Date(), nlink: 1, size, mode, uid: 0, gid: 0 })

const fuse = new Fuse(process.argv[2], {
  readdir (path, answer) { answer(0, ['hello']) },
  getattr (path, answer) {
    if (path === '/') return answer(0, attributes(0o040755, 0))
    if (path === '/hello') return answer(0, attributes(0o100444, content.length))
    answer(Fuse.ENOENT)
  },
  open (path, flags, answer) { answer(0, 1) },
  read (path, fd, buffer, length, position, answer) { answer(content.copy(buffer, 0, position, position + length)) }
})

fuse.mount(error => { if (error) { console.error(error); process.exit(1) } })
process.once('SIGTERM', () => fuse.unmount(error => { if (error) console.error(error); process.exit(error ? 1 : 0) }))
