# Serves one file that can only be read, by Ruby's FuseFS: hello.rb MOUNTPOINT.
require 'fusefs'

class Hello
  def contents(path)
    ['hello']
  end

  def file?(path)
    path == '/hello'
  end

  def read_file(path)
    "Hello World!\n"
  end

  def size(path)
    13
  end
end

FuseFS.set_root(Hello.new)
FuseFS.mount_under(ARGV[0])
FuseFS.run
