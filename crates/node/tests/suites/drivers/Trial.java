import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Arrays;
import org.sqlite.SQLiteConfig;

/** The trial of Xerial's JDBC driver. Usage: Trial DATABASE MODE; what a trial does stands in drivers.py. */
public class Trial {
    public static void main(String[] arguments) throws Exception {
        SQLiteConfig config = new SQLiteConfig();
        config.setJournalMode(SQLiteConfig.JournalMode.valueOf(arguments[1].toUpperCase()));
        config.setBusyTimeout(20000);
        String url = "jdbc:sqlite:" + arguments[0];
        try (Connection db = DriverManager.getConnection(url, config.toProperties())) {
            String driver = db.getMetaData().getDriverVersion();
            System.out.println("Java " + Runtime.version() + ", sqlite-jdbc " + driver + ", SQLite " + row(db, "SELECT sqlite_version()"));
            try (Statement statement = db.createStatement()) {
                statement.executeUpdate("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c BLOB, d REAL)");
            }
            System.in.read();
            write(db);
            try (Connection other = DriverManager.getConnection(url, config.toProperties())) {
                System.out.println(row(other, "SELECT count(*), sum(length(b)), sum(length(c)), sum(d) FROM t"));
                System.out.println(row(other, "PRAGMA integrity_check"));
            }
            System.out.println(row(db, "PRAGMA journal_mode"));
        }
    }

    static void write(Connection db) throws SQLException {
        db.setAutoCommit(false);
        for (int number = 1; number <= 6; number++) {
            part(db, number, number * 7);
            db.commit();
        }
        part(db, 7, 30);
        db.rollback();
        part(db, 8, 3000);
        db.commit();
        try (Statement statement = db.createStatement()) {
            statement.executeUpdate("DELETE FROM t WHERE a % 4 = 0");
        }
        db.commit();
        part(db, 9, 5);
        db.commit();
        db.setAutoCommit(true);
    }

    static void part(Connection db, int number, int rows) throws SQLException {
        try (PreparedStatement insert = db.prepareStatement("INSERT INTO t(b, c, d) VALUES (?, ?, ?)")) {
            for (int i = 1; i <= rows; i++) {
                byte[] bytes = new byte[i % 900];
                Arrays.fill(bytes, (byte) (i % 251));
                insert.setString(1, "row " + (number * 1000 + i) + " äöü");
                insert.setBytes(2, bytes);
                insert.setDouble(3, i / 8.0);
                insert.addBatch();
            }
            insert.executeBatch();
        }
        try (PreparedStatement update = db.prepareStatement("UPDATE t SET b = b || '!' WHERE a % 5 = ?")) {
            update.setInt(1, number % 5);
            update.executeUpdate();
        }
    }

    static String row(Connection db, String query) throws SQLException {
        try (Statement statement = db.createStatement(); ResultSet found = statement.executeQuery(query)) {
            found.next();
            StringBuilder text = new StringBuilder();
            for (int column = 1; column <= found.getMetaData().getColumnCount(); column++) {
                text.append(column == 1 ? "" : " ").append(found.getString(column));
            }
            return text.toString();
        }
    }
}
