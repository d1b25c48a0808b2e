
# Appended to SQLite's tester.tcl for runs on the mount. Most files need a tenth of a second in all: the daemon would not have found their
# databases before they end. So after each test that has made a database, or made one anew, it gets time to find it.
if {[info commands do_test_at_once]==""} {
  rename do_test do_test_at_once
  set ::patient_times 0
  proc patient_wait {} {
    foreach name {test.db test2.db test3.db test4.db} {
      if {[catch {file stat $name stat}] || $stat(size)==0} continue
      if {[info exists ::patient_seen($name)] && $::patient_seen($name)==$stat(ino)} continue
      set ::patient_seen($name) $stat(ino)
      # A file that makes hundreds of databases has shown enough by then.
      if {[incr ::patient_times]<=60} { after 350 }
    }
  }
  proc do_test {args} {
    set result [uplevel 1 [linsert $args 0 do_test_at_once]]
    patient_wait
    set result
  }
}
